"""The fold of jobs in simulated worlds full of faults, and what must hold in them."""
