"""The doctor of a cluster: what is seen from outside, then the records themselves."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from onefold.cluster.permissions import inbox_prefix
from onefold.doctor import checks as cluster_checks
from onefold.doctor import facts as cluster_facts
from onefold.doctor import records as cluster_records
from onefold.doctor.embedded import Check
from onefold.doctor.facts import ClusterFacts, StreamFacts
from onefold.doctor.records import Comparer, Finding
from onefold.errors import OnefoldError, SpaceError
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import Address, parse_address
from onefold.log.jetstream.client.link import Link


def examine(url: str, *, deep: bool = False) -> Iterator[Check]:
    """Check the servers, the streams, and the records of every copy: the first and last of each log, or (``deep``) all.

    With the credential of the URL, or the admin's where it lies next to it, as in a cluster that ``onefold up`` made. Raises
    InvalidArgument, Unavailable, SpaceError when nobody can be asked.
    """
    link = Link(_admin(parse_address(url)), name="onefold-doctor")
    try:
        facts = cluster_facts.look(link)
        yield from cluster_checks.judge(facts)
        if facts.space is not None:
            yield _records(link, facts, deep=deep)
            yield from _leftovers(link)
    finally:
        link.close()


def _admin(address: Address) -> Address:
    """The same as the admin, if this is a user of a cluster of this machine and the admin's seed is there."""
    if address.nkey is None:
        return address
    seed = Path(address.nkey).with_name(f"{address.space}.admin.nk")
    if not os.access(seed, os.R_OK):
        return address
    return dataclasses.replace(address, nkey=str(seed), inbox=inbox_prefix("admin"))


def _comparer(link: Link) -> Comparer:
    """One that names the servers, if the credential may trace."""
    comparer = Comparer(link, traced=True)
    try:
        return comparer.__enter__()
    except SpaceError:
        return Comparer(link, traced=False).__enter__()


def _records(link: Link, facts: ClusterFacts, *, deep: bool) -> Check:
    compared, wrong, silent, advice = 0, [], set(), ""
    comparer = _comparer(link)
    try:
        for stream in facts.streams:
            if stream.log is None or stream.info is None:
                continue
            first, last = max(int(stream.state.get("first_seq", 1)), 1), int(stream.state.get("last_seq", 0))
            servers = stream.servers or [link.server_name or ""]
            found = comparer.compare(stream.log, servers, cluster_records.ranges(first, last, deep=deep))
            findings = _untrimmed(link, stream, found.findings)
            compared += found.records
            silent |= found.silent
            if findings:
                wrong.append(f"{stream.name}: {cluster_records.said(findings)}")
                advice = advice or _advice(facts, stream, findings)
    except OnefoldError as error:
        return Check(
            "records",
            "warn",
            f"they could not be compared: {error}",
            "Start what does not run, then try again",
        )
    finally:
        comparer.__exit__()
    if wrong:
        return Check("records", "problem", "; ".join(wrong), advice)
    if silent:
        return Check(
            "records",
            "warn",
            f"no record was had from {', '.join(sorted(silent))}",
            "Look again when its copies are current",
        )
    extent = "all" if deep else "the first and last of each log (--deep: all)"
    return Check("records", "ok", f"{compared:,} offsets are alike on all servers: {extent}")


def _untrimmed(link: Link, stream: StreamFacts, findings: list[Finding]) -> list[Finding]:
    """Those that were not trimmed meanwhile."""
    if not findings or stream.log is None:
        return findings
    from onefold.log.jetstream.streams import stream_state

    first = link.run(partial(stream_state, link, stream.name), None).first
    return [finding for finding in findings if finding.offset >= first]


def _advice(facts: ClusterFacts, stream: StreamFacts, findings: list[Finding]) -> str:
    rotten = sorted({finding.server for finding in findings if finding.server is not None})
    if not rotten:
        return "Run the doctor with the admin's credential: it then says on which server"
    if len(rotten) > 1:
        return (
            f"Several copies are damaged ({', '.join(rotten)}): delete none. What one of them has whole is served; "
            "copy all their directories, then repair one server at a time, that with the most damage first"
        )
    details = {server.name: server.details for server in facts.servers}
    return cluster_checks.repair(rotten[0], stream.name, stream.copies.get(rotten[0]), details.get(rotten[0]))


def _leftovers(link: Link) -> Iterator[Check]:
    try:
        left = admin.leftover_streams(link)
    except OnefoldError:
        return  # only the admin may list
    if left:
        yield Check(
            "leftovers",
            "warn",
            f"streams that no space names: {', '.join(left[:5])}",
            "Delete them, once nobody makes a space",
        )
