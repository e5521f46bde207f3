"""Live jobs by their names, and what is known of one: for programs that start them, work on them and look at them.

==============  ============================================================================================
module          what it has
==============  ============================================================================================
``stored``      jobs by their names, with their plans
``beginning``   what a job begins with: its plan as bytes, and where its inputs begin
``changes``     what a plan changes of a job that it continues
``loops``       jobs that would feed each other
``status``      how a job stands
``committed``   how far its inputs are committed, and what is not
``held_by``     what keeps its windows open, in words
``points``      whether everything before a point is committed
``waits``       waits for it: how long, and in which steps
``letters``     records that were set aside, as dead letters
==============  ============================================================================================

May import ``inputs``, ``operators``, ``plan``, ``client`` and what is below them.
"""
