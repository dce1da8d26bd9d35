"""Which pairs of state and event the daemon has met, from its log, and which its tables have.

With log-level debug the daemon writes a line for each event of a pod or a container: `pod ID: state,
event: next state`. The tables are read from krun.c, so that a pair is known to nobody but them.
"""
import collections
import os
import re

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LINE = re.compile(r"(pod|container) [0-9a-f]{0,12}: (\w+), (\w+): (\w+)$")
KINDS = {"pod": "pod", "container": "box"}


def words(source, name):
    found = re.search(rf"\b{name}\[[A-Z_]+\] = {{(.*?)}};", source, re.DOTALL)
    return re.findall(r'"(\w+)"', found[1])


def tables():
    """{kind: {(state, event): next state}} of all pairs that can be."""
    with open(os.environ.get("KRUN_SOURCE", os.path.join(TOP, "krun.c"))) as f:
        source = f.read()
    all_of_them = {}
    for kind, prefix in KINDS.items():
        body = re.search(rf"\b{prefix}_next\[[A-Z_\]\[]+\] = {{(.*?)\n}};", source, re.DOTALL)[1]
        events, pairs = words(source, prefix + "_event_words"), {}
        for state, row in re.findall(r"\[\w+?_(\w+)\]\s*= {(.*?)}", body, re.DOTALL):
            cells = [cell.strip().lower() for cell in row.split(",")]
            assert len(cells) == len(events), (kind, state, cells)
            pairs.update({(state.lower(), event): cell.split("_")[1]
                          for event, cell in zip(events, cells) if cell != "no"})
        all_of_them[kind] = pairs
    return all_of_them


def met(log):
    """How often each (kind, state, event, next state) stands in the daemon's log."""
    with open(log, errors="replace") as f:
        found = (LINE.search(line.rstrip()) for line in f)
        return collections.Counter(m.groups() for m in found if m)


def report(log):
    """Prints which pairs were met, how often, and which were not. False: one is in no table."""
    seen, good = met(log), True
    for kind, pairs in tables().items():
        mine = {(s, e): (n, to) for (k, s, e, to), n in seen.items() if k == kind}
        for pair, (n, to) in sorted(mine.items()):
            if pairs.get(pair) != to:
                good = False
                print(f"FAILED {kind}: {pair[0]}, {pair[1]}: {to} ({n} times) is in no table", flush=True)
        print(f"crash: {len(mine)} of {len(pairs)} pairs of a {kind}'s states and events were met: " +
              ", ".join(f"{s} {e} {n}" for (s, e), (n, _) in sorted(mine.items())))
        unmet = sorted(set(pairs) - set(mine))
        print(f"crash: only unit tests met: {', '.join(' '.join(p) for p in unmet) or 'none'}", flush=True)
    return good and len(seen) > 0
