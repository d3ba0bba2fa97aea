"""Protects: one fault is one event, however many sources and lines tell of it; none is delayed, lost or invented, and
memory stays bounded under a flood."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from gridkeeper.catalogue.codes import HostCode
from gridkeeper.ports.devices import Device, Sighting
from gridkeeper.records.fleet import EventKind
from nodeagent.dedupe import MAX_DETAILS, WINDOW_MS, Admitted, Dedupe, resolve

BUS = "00000000:91:00.0"


def nvml(code: int = 48, at: int = 0, slot: str = "gpu3") -> Sighting:
    return Sighting(slot, EventKind.XID, code, f"XID {code} (NVML event)", "nvml", at, pci_bus_id=BUS)


def kmsg(code: int = 48, at: int = 0, slot: str = "gpu3", text: str = "DBE", pid: int = 77) -> Sighting:
    message = f"NVRM: Xid (PCI:0000:91:00): {code}, pid={pid}, name=python3, {text}"
    return Sighting(slot, EventKind.XID, code, message, "kmsg", at, pid, BUS)


def test_the_first_sighting_is_admitted_at_once() -> None:
    admitted = Dedupe().see(nvml(at=5), 6)
    assert admitted is not None
    assert (admitted.slot, admitted.code, admitted.count, admitted.update) == ("gpu3", 48, 1, False)
    assert (admitted.sources, admitted.seen_ms) == (("nvml",), 5)


def test_the_second_source_adds_no_event() -> None:
    dedupe = Dedupe()
    assert dedupe.see(nvml(), 0)
    assert dedupe.see(kmsg(at=20), 120) is None
    assert dedupe.flush(WINDOW_MS) == ()
    assert dedupe.flush(10 * WINDOW_MS) == ()
    assert len(dedupe) == 0


def test_a_source_that_lags_behind_the_window_adds_no_event() -> None:
    dedupe = Dedupe()
    assert dedupe.see(nvml(at=0), 0)
    assert dedupe.flush(WINDOW_MS) == ()
    assert dedupe.see(kmsg(at=3), WINDOW_MS + 500) is None


def test_more_repeats_become_one_update_with_the_kernel_logs_words() -> None:
    dedupe = Dedupe()
    dedupe.see(nvml(), 0)
    for at in (10, 20, 30):
        assert dedupe.see(kmsg(at=at, text=f"line {at}"), at) is None
    (update,) = dedupe.flush(WINDOW_MS)
    assert (update.count, update.update, update.sources, update.pid) == (2, True, ("kmsg", "nvml"), 77)
    assert "line 30" in update.message
    assert (update.seen_ms, update.last_seen_ms) == (20, 30)


def test_a_later_fault_is_a_new_event() -> None:
    dedupe = Dedupe()
    dedupe.see(nvml(at=0), 0)
    dedupe.flush(WINDOW_MS)
    again = dedupe.see(nvml(at=2 * WINDOW_MS), 2 * WINDOW_MS)
    assert again is not None
    assert (again.update, again.count) == (False, 1)


def test_devices_kinds_and_codes_stay_apart() -> None:
    dedupe = Dedupe()
    others = [nvml(48), nvml(94), nvml(48, slot="gpu4"), Sighting("gpu3", EventKind.DEVICE_MISSING, 48, "", "nvml", 0)]
    assert all(dedupe.see(sighting, 0) for sighting in others)


def test_a_text_that_decides_the_meaning_does_not_wait() -> None:
    """XID 154 comes from NVML as a bare number; what to do is only in the kernel log's words."""
    dedupe = Dedupe()
    assert dedupe.see(nvml(154), 0)
    reset = dedupe.see(kmsg(154, text="(None) to 0x1 (GPU Reset Required)"), 5)
    assert reset is not None
    assert "GPU Reset Required" in reset.message
    assert dedupe.see(kmsg(154, text="(None) to 0x1 (GPU Reset Required)", pid=99), 6) is None
    reboot = dedupe.see(kmsg(154, text="0x1 to 0x2 (Node Reboot Required)"), 7)
    assert reboot is not None
    assert "Node Reboot" in reboot.message
    texts = [dedupe.see(kmsg(154, text=f"noise {n}"), 8) for n in range(100)]
    assert sum(admitted is not None for admitted in texts) <= MAX_DETAILS


def test_a_flood_of_one_line_is_one_event_and_one_update_per_window() -> None:
    dedupe = Dedupe()
    admitted: list[Admitted] = []
    for number in range(100_000):
        at = number // 10  # 10 s
        if number % 1_000 == 0:
            admitted.extend(dedupe.flush(at))
        if (first := dedupe.see(kmsg(95, at), at)) is not None:
            admitted.append(first)
    admitted.extend(dedupe.flush(10_000 + WINDOW_MS))
    assert len(dedupe) == 1
    assert len(admitted) <= 2 + 10_000 // WINDOW_MS + 1
    assert sum(a.count for a in admitted) == 100_000


def test_a_flood_of_different_faults_is_bounded_and_says_so() -> None:
    dedupe = Dedupe(max_keys=100)
    admitted = [dedupe.see(kmsg(code), 0) for code in range(1, 100_001)]
    told = [a for a in admitted if a is not None]
    assert len(dedupe) <= 101
    assert len(told) == 101
    assert told[-1].kind is EventKind.OVERFLOW
    (update,) = dedupe.flush(WINDOW_MS)
    assert update.kind is EventKind.OVERFLOW
    assert update.count + told[-1].count == 100_000 - 100


def test_missing_found_missing_ends_as_missing() -> None:
    dedupe = Dedupe()
    missing = Sighting("gpu0", EventKind.DEVICE_MISSING, 0, "gone", "nvml", 0)
    found = Sighting("gpu0", EventKind.DEVICE_FOUND, 0, "back", "nvml", 0)
    told: list[EventKind] = []
    for at, sighting in enumerate((missing, found, missing)):
        event = dedupe.see(Sighting(**{**_fields(sighting), "seen_ms": at}), at)
        told.extend([event.kind] if event else [])
    told.extend(a.kind for a in dedupe.flush(WINDOW_MS + 5))
    assert told == [EventKind.DEVICE_MISSING, EventKind.DEVICE_FOUND, EventKind.DEVICE_MISSING]


def _fields(sighting: Sighting) -> dict[str, object]:
    return {name: getattr(sighting, name) for name in Sighting.__slots__}


def test_resolve_finds_the_slot_by_address() -> None:
    devices = (Device("gpu3", "u", "nvidia", "", "", BUS, "", 0, ""),)
    assert resolve(kmsg(slot=""), devices).slot == "gpu3"
    assert resolve(kmsg(slot="gpu9"), devices).slot == "gpu9"
    assert resolve(Sighting("", EventKind.SXID, 1, "", "kmsg", 0, pci_bus_id="0000:06:00.0"), devices).slot == ""


def test_next_flush_says_when_to_come_back() -> None:
    dedupe = Dedupe()
    assert dedupe.next_flush_ms() is None
    dedupe.see(nvml(), 100)
    dedupe.see(nvml(), 101)
    assert dedupe.next_flush_ms() == 100 + WINDOW_MS
    assert len(dedupe.flush(100 + WINDOW_MS)) == 1
    due = dedupe.next_flush_ms()
    assert due is not None
    dedupe.flush(due)
    assert len(dedupe) == 0


SIGHTINGS = st.lists(
    st.tuples(st.integers(0, 900), st.sampled_from(["nvml", "kmsg"]), st.sampled_from([13, 48, 94]),
              st.sampled_from(["gpu0", "gpu1"]), st.integers(0, 200)),
    max_size=120,
)  # fmt: skip


@given(SIGHTINGS, st.integers(50, 3_000))
@settings(max_examples=200)
def test_counts_add_up_to_the_source_that_saw_most(steps: list[tuple[int, str, int, str, int]], flush_ms: int) -> None:
    """Whatever the interleaving: every fault is told; what is told is at least what the best source saw, and at most
    what all saw together; an update never comes sooner than a window after the admission before it."""
    dedupe, now, next_flush = Dedupe(), 0, 0
    seen: dict[tuple[str, int], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    told: dict[tuple[str, int], int] = defaultdict(int)
    last_told: dict[tuple[str, int], int] = {}

    def note(admitted: Admitted, at: int) -> None:
        key = (admitted.slot, admitted.code)
        assert admitted.count >= 1
        if admitted.update:
            assert at >= last_told[key] + WINDOW_MS
        last_told[key] = at
        told[key] += admitted.count

    for gap, source, code, slot, lag in steps:
        now += gap
        while next_flush <= now:
            for admitted in dedupe.flush(next_flush):
                note(admitted, next_flush)
            next_flush += flush_ms
        sighting = (nvml if source == "nvml" else kmsg)(code, max(0, now - lag), slot)
        first_of_all = (slot, code) not in seen
        seen[(slot, code)][source] += 1
        result = dedupe.see(sighting, now)
        assert result is not None or not first_of_all, "the first sighting never waits"
        if result is not None:
            note(result, now)
    for admitted in dedupe.flush(max(now, next_flush) + 10 * WINDOW_MS):
        note(admitted, max(now, next_flush) + 10 * WINDOW_MS)
    for key, counts in seen.items():
        assert max(counts.values()) <= told[key] <= sum(counts.values())


def test_another_disk_does_not_wait_behind_the_first() -> None:
    """Protects: events of one code about several disks or interfaces name each of them."""
    dedupe = Dedupe()

    def down(name: str, at: int) -> Admitted | None:
        return dedupe.see(Sighting("", EventKind.HOST, 60, f"{name}: Link down", "kmsg", at, subject=name), at)

    told = [down("eth0", 0), down("eth1", 1), down("eth0", 2), down("eth1", 3)]
    assert [t.message if t else None for t in told] == ["eth0: Link down", "eth1: Link down", None, None]


def test_a_kill_counted_by_vmstat_is_the_one_that_the_kernel_log_tells_exactly() -> None:
    dedupe = Dedupe()
    cgroup, whole = int(HostCode.OOM_KILL_CGROUP), int(HostCode.OOM_KILL)
    assert dedupe.see(Sighting("", EventKind.HOST, cgroup, "Memory cgroup out of memory", "kmsg", 0), 0)
    assert dedupe.see(Sighting("", EventKind.HOST, whole, "vmstat: 1 kill", "host", 900), 900) is None
    assert dedupe.flush(WINDOW_MS) == ()
    assert len(dedupe) == 1
    alone = Dedupe().see(Sighting("", EventKind.HOST, whole, "vmstat: 1 kill", "host", 0), 0)
    assert alone is not None
    assert alone.code == whole, "without a kernel log the counter is all there is"


def test_eight_hundred_thousand_lines_of_which_29_are_distinct() -> None:
    """Protects: one bad node's flood (NVSentinel #1120) stays 29 faults in bounded memory, and no line is lost to the
    counts. Scaled down by 10 in number, not in rate."""
    dedupe = Dedupe()
    total = 80_000
    told: dict[str, int] = {}
    events = 0
    for number in range(total):
        at = number // 20
        text = f"Uncontained: FBHUB {number % 29}"
        sighting = Sighting(f"gpu{number % 29}", EventKind.XID, 95, text, "kmsg", at)
        for admitted in (*([first] if (first := dedupe.see(sighting, at)) else []), *_flushed(dedupe, at, number)):
            told[admitted.slot] = told.get(admitted.slot, 0) + admitted.count
            events += 1
    for admitted in dedupe.flush(total):
        told[admitted.slot] = told.get(admitted.slot, 0) + admitted.count
    assert len(dedupe) <= 29
    assert len(told) == 29
    assert sum(told.values()) == total
    assert events <= 29 * (2 + total // 20 // WINDOW_MS)


def _flushed(dedupe: Dedupe, at: int, number: int) -> tuple[Admitted, ...]:
    return dedupe.flush(at) if number % 1_000 == 0 else ()
