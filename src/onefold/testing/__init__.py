"""The test kit: conformance suites, simulators and checkers. Product code does not import it."""
