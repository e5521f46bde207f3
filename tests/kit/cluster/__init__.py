"""Real faults on a real local cluster: servers, nodes and clients as processes, on hosts that are network namespaces.

``PYTHONPATH=tests python -m kit.cluster --help`` is the long form of the fault suite.
"""
