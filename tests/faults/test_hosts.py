"""The hosts of the test kit: what was cut is cut, one way or both, and what was healed works again."""

import subprocess
import sys

import pytest

from kit.cluster import hosts

pytestmark = pytest.mark.skipif(hosts.missing() is not None, reason=str(hosts.missing()))

LISTEN = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 9000))
print("ready", flush=True)
while True:
    data, who = s.recvfrom(100)
    print(data.decode(), flush=True)
    try:
        s.sendto(b"heard " + data, who)
    except OSError:
        pass  # what has no route is told to the sender
"""
SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(float(sys.argv[3]))
try:
    s.sendto(sys.argv[2].encode(), (sys.argv[1], 9000))
    print(s.recv(100).decode())
except OSError as error:
    print("nothing")
"""


@pytest.fixture
def network():
    with hosts.Hosts(["a", "b", "c"]) as made:
        yield made


@pytest.fixture
def listener(network):
    command = [*network["b"].prefix, sys.executable, "-c", LISTEN, network["b"].address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def ask(network, source, word, patience=0.3):
    command = [*network[source].prefix, sys.executable, "-c", SEND]
    command += [network["b"].address, word, str(patience)]
    return subprocess.check_output(command, text=True).strip()


def test_hosts_reach_each_other(network, listener):
    assert ask(network, "a", "one", 10) == "heard one"


def test_who_is_unplugged_hears_nothing_until_plugged_in_again(network, listener):
    assert ask(network, "a", "zero", 10) == "heard zero"
    assert listener.stdout.readline() == "zero\n"
    network.unplug("b")
    assert ask(network, "a", "one") == "nothing"
    network.plug("b")
    assert ask(network, "a", "two", 10) == "heard two"
    assert listener.stdout.readline() == "two\n", "what was sent meanwhile never came"


def test_one_way_loss_loses_one_way(network, listener):
    network.deafen("b", "a")
    assert ask(network, "a", "one") == "nothing"
    assert listener.stdout.readline() == "one\n", "it came, and the answer was lost"
    network.heal()
    assert ask(network, "a", "two", 10) == "heard two"


def test_a_split_cuts_sides_and_not_who_is_in_neither(network, listener):
    network.split(["a"], ["b"])
    assert ask(network, "a", "one") == "nothing"
    assert ask(network, "c", "two", 10) == "heard two"
    network.heal()
    assert ask(network, "a", "three", 10) == "heard three"


def test_nothing_is_left_behind(network):
    names = [host.namespace for host in network.hosts.values()]
    network.close()
    listed = subprocess.check_output(["ip", "netns", "list"], text=True)
    assert not any(name in listed for name in names)
