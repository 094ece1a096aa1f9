"""How many threads and how much memory this machine has for us, also inside a container."""

from __future__ import annotations

from etude.engine.machine import memory_bytes, usable_cores


def test_a_container_quota_limits_the_cores(tmp_path):
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path) == usable_cores(tmp_path / "nothing here") >= 1


def test_hyper_threads_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert usable_cores(tmp_path / "no cgroup", tmp_path) == 2
    assert usable_cores(tmp_path / "no cgroup", tmp_path / "no cpus") == 4


def test_memory_is_at_most_the_containers(tmp_path):
    whole = memory_bytes(tmp_path)
    assert whole > 1 << 28
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory_bytes(tmp_path) == 1000000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes(tmp_path) == whole
