"""Real faults on a real local cluster: servers, nodes and clients as processes, on hosts that are network namespaces.

``python -m onefold.testing.cluster --help`` is the long form of the fault suite.
"""
