"""The apparatus of the project's own tests: clusters that are broken on purpose, workloads and planted bugs of the simulator,
worlds of jobs, remote and sharded spaces. What programs that use Onefold are tested with is ``onefold.testing``; this may import
everything there, and is imported by tests only.
"""
