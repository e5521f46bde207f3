"""Values, code and keys as canonical bytes: equal ones have equal bytes in every process and release.

Names of tasks and stored keys are made of them, so a change of these bytes needs a new version number. May import
``compute.frames``, ``compute.plan`` and ``compute.code.user_code``.
"""
