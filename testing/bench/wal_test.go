//go:build bench

package bench_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"agent/testing/harness"
)

// walKind is a kind of WAL to archive and recover.
type walKind struct {
	name string
	part int // of the segments that are asked for: all of them would fill the memory
	// make writes WAL for a while.
	make func(t *testing.T, s *harness.Server)
}

func walKinds() []walKind {
	return []walKind{
		{"pgbench", 1, func(t *testing.T, s *harness.Server) {
			// Most of it are full pages, as on a server with ordinary checkpoints.
			s.Exec(t, "CHECKPOINT")
			s.Run(t, "pgbench", "-n", "-c", "4", "-t", "3000")
		}},
		{"incompressible", 4, func(t *testing.T, s *harness.Server) {
			// Random bytes that are stored as they are.
			s.Exec(t, "CREATE EXTENSION IF NOT EXISTS pgcrypto", "CREATE TABLE IF NOT EXISTS noise (b bytea)",
				"ALTER TABLE noise ALTER b SET STORAGE EXTERNAL",
				"INSERT INTO noise SELECT gen_random_bytes(1000) FROM generate_series(1, 100000)")
		}},
	}
}

// archive is a server's backup and the segments behind it, in the repository and
// as they are.
type archive struct {
	w        *bench
	s        *harness.Server
	plain    string // folder with the segments
	segments []string
}

// newArchive makes a backup and then count segments of WAL.
func newArchive(t *testing.T, kind walKind, count int, reach ...string) archive {
	t.Helper()
	s, w, _ := site(t, scale(t, "BENCH_SMALL", 20), reach...)
	a := archive{w: w, s: s, plain: filepath.Join(w.dir, "plain")}
	s.AppendConf(t, map[string]string{"wal_keep_size": "16GB", "max_wal_size": "32GB", "checkpoint_timeout": "1h"})
	s.Exec(t, "SELECT pg_reload_conf()")
	w.agent(nil, "backup-push")
	number := func() int64 {
		return s.QueryInt(t, "SELECT ((pg_current_wal_insert_lsn() - '0/0') / 16777216)::bigint")
	}
	first := number()
	for number() < first+int64(count) {
		kind.make(t, s)
	}
	s.Exec(t, "SELECT pg_switch_wal()")
	last := s.QueryString(t, "SELECT pg_walfile_name(pg_current_wal_insert_lsn() - 16777216)")
	// A fast stop waits until all is archived.
	s.Stop(t)
	w.sh("mkdir -p " + a.plain + "; cp " + filepath.Join(s.DataDir, "pg_wal") + "/0* " + a.plain)
	found, err := filepath.Glob(filepath.Join(a.plain, "00000001????????????????"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	for _, path := range found {
		if name := filepath.Base(path); name <= last {
			a.segments = append(a.segments, name)
		}
	}
	a.segments = a.segments[max(0, len(a.segments)-count):]
	return a
}

// recover restores the backup and replays everything; what the server's start
// to the end of recovery takes is measured. command replaces restore_command.
func (a archive) recover(t *testing.T, command string) cost {
	t.Helper()
	dest := filepath.Join(a.w.dir, "recovered")
	a.w.agent(nil, "backup-fetch", dest)
	defer remove(t, dest)
	conf := map[string]string{"fsync": "off", "shared_buffers": "512MB"}
	if command != "" {
		conf["restore_command"] = command
	}
	a.w.sh("sync")
	over := removal(t, filepath.Join(dest, "recovery.signal"))
	began := time.Now()
	r := harness.StartExisting(t, dest, a.s.Major, conf, a.w.env...)
	var c cost
	// What looks takes no connection, which would cost more than a segment, and
	// seldom reads all of /proc: replay and what fetches ahead need both processors.
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for recovers := true; recovers; {
		select {
		case <-over:
			recovers = false
		case <-tick.C:
			c.rss = max(c.rss, largest("wal-prefetch"))
			if _, err := os.Stat(filepath.Join(dest, "postmaster.pid")); err != nil {
				t.Fatalf("the server has ended: %v", err)
			}
		}
	}
	r.WaitRecovered(t)
	c.wall = time.Since(began)
	r.Kill(t)
	return c
}

// removal is closed when a file is removed, as PostgreSQL removes recovery.signal
// at the end of recovery.
func removal(t *testing.T, path string) <-chan struct{} {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	t.Cleanup(func() { _ = events.Close() })
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_DELETE_SELF); err != nil {
		t.Fatal(err)
	}
	removed := make(chan struct{})
	go func() {
		defer close(removed)
		// The first event is the one that was asked for; an error is told by what comes next.
		_, _ = events.Read(make([]byte, unix.SizeofInotifyEvent+unix.PathMax))
	}()
	return removed
}

// TestRecovery replays what was archived, from the repository and from a folder
// that has all segments as they are.
func TestRecovery(t *testing.T) {
	for _, kind := range walKinds() {
		count := scale(t, "BENCH_SEGMENTS", 200) / kind.part
		for _, codec := range []string{"zstd", "lz4"} {
			t.Run(kind.name+"/folder-"+codec, func(t *testing.T) {
				newArchive(t, kind, count, "AGENT_COMPRESSION="+codec).compare(t, "a folder, "+codec, kind)
			})
		}
		t.Run(kind.name+"/S3", func(t *testing.T) {
			b := newBucket(t)
			a := newArchive(t, kind, count, b.env...)
			for _, latency := range []time.Duration{0, 20 * time.Millisecond} {
				b.fault.Latency(t, latency)
				a.compare(t, fmt.Sprintf("S3, answers %s later", latency), kind)
				b.fault.Heal()
			}
		})
	}
}

// compare replays the archive as the agent brings it, from ready files, and
// without prefetching.
func (a archive) compare(t *testing.T, store string, kind walKind) {
	t.Helper()
	costs := rounds(scale(t, "BENCH_ROUNDS", 3),
		func() cost { return a.recover(t, "") },
		func() cost { return a.recover(t, "cp "+a.plain+"/%f %p") },
		func() cost { return a.recover(t, harness.AgentBinary(t)+" wal-fetch %f %p --no-prefetch") })
	recoveryTable(t, store, kind, len(a.segments), costs)
}

func recoveryTable(t *testing.T, store string, kind walKind, count int, costs []cost) {
	t.Helper()
	segmentTable(t, fmt.Sprintf("recovery of %d segments of %s from %s (asked: 1.1 times cp, 60 segments/s)", count, kind.name, store),
		count, 1, []string{"agent", "cp", "agent --no-prefetch"}, costs)
}

// segmentTable prints what contestants took for a number of segments, and how many
// times what the contestant to took.
func segmentTable(t *testing.T, title string, count, to int, names []string, costs []cost) {
	t.Helper()
	var out strings.Builder
	for i, c := range costs {
		fmt.Fprintf(&out, "%20s %6.2f s  %5.1f segments/s  %3.0f MB  %.2f times %s\n", names[i], c.wall.Seconds(),
			float64(count)/c.wall.Seconds(), float64(c.rss)/1e6, c.wall.Seconds()/costs[to].wall.Seconds(), names[to])
	}
	t.Logf("%s\n%s", title, out.String())
}

// backlog is a server with segments that wait, which can be archived again and
// again.
type backlog struct {
	w      *bench
	s      *harness.Server
	count  int
	rounds int
}

func newBacklog(t *testing.T, kind walKind, count int) *backlog {
	t.Helper()
	s, w, _ := site(t, scale(t, "BENCH_SMALL", 20))
	s.AppendConf(t, map[string]string{"wal_keep_size": "16GB", "max_wal_size": "32GB", "checkpoint_timeout": "1h", "archive_command": "false"})
	s.Exec(t, "SELECT pg_reload_conf()")
	b := &backlog{w: w, s: s}
	for b.waiting(t) < count {
		kind.make(t, s)
	}
	b.count = b.waiting(t)
	return b
}

func (b *backlog) status() string { return filepath.Join(b.s.DataDir, "pg_wal", "archive_status") }

func (b *backlog) waiting(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir(b.status())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".ready") {
			n++
		}
	}
	return n
}

// archive lets the server archive everything into a new repository. The CPU time
// is that of the archiver with its commands and of the process beside the server.
func (b *backlog) archive(t *testing.T, reach []string, url, flags string) cost {
	t.Helper()
	b.rounds++
	repository := fmt.Sprintf("AGENT_REPOSITORY=%s-%d", url, b.rounds)
	b.w.agent(append(slices.Clone(reach), repository), "repo", "init")
	return b.timed(t, strings.Join(append(slices.Clone(reach), repository), " ")+" "+harness.AgentBinary(t)+" wal-push "+flags+" %p", "wal-push")
}

// timed lets the server archive everything again, by a command whose processes
// have a name among their arguments.
func (b *backlog) timed(t *testing.T, command, name string) cost {
	t.Helper()
	b.w.sh("cd " + b.status() + `; for f in *.done; do mv "$f" "${f%.done}.ready"; done 2>/dev/null || true`)
	archiver := b.s.QueryInt(t, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'archiver'")
	before := spent(int(archiver))
	began := time.Now()
	b.s.Exec(t, "ALTER SYSTEM SET archive_command = '"+command+"'", "SELECT pg_reload_conf()")
	var most int64
	var beside time.Duration
	for look := 0; b.waiting(t) > 0; look++ {
		time.Sleep(25 * time.Millisecond)
		if look%20 != 0 { // reading all of /proc costs what it measures
			continue
		}
		most = max(most, largest(name))
		for _, pid := range running(filepath.Join(b.s.DataDir, "pg_wal")) {
			beside = max(beside, spent(pid))
		}
	}
	c := cost{wall: time.Since(began), cpu: spent(int(archiver)) - before + beside, rss: most}
	b.s.Exec(t, "ALTER SYSTEM SET archive_command = 'false'", "SELECT pg_reload_conf()")
	return c
}

// largest is the peak memory of the processes that have the text among their
// arguments now, in bytes.
func largest(text string) (most int64) {
	for _, pid := range running(text) {
		most = max(most, highWater(pid))
	}
	return most
}

// running are the processes that have the text among their arguments now.
func running(text string) (pids []int) {
	found, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well formed
	for _, path := range found {
		line, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(line), text) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// spent is the CPU time of a process and of those that it has waited for; 0 if
// it has ended (proc(5), /proc/PID/stat, in hundredths of a second).
func spent(pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks time.Duration
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0
		}
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}

// TestBacklog archives what has piled up, through the server's archiver.
func TestBacklog(t *testing.T) {
	for _, kind := range walKinds() {
		t.Run(kind.name, func(t *testing.T) {
			b := newBacklog(t, kind, scale(t, "BENCH_SEGMENTS", 200)/kind.part)
			for _, codec := range []string{"zstd", "lz4"} {
				t.Run("folder-"+codec, func(t *testing.T) {
					url := filepath.Join(b.w.dir, "again")
					b.compare(t, "a folder, "+codec, kind, []string{"AGENT_COMPRESSION=" + codec}, url)
					b.w.sh("rm -rf " + url + "-*")
				})
			}
			for _, latency := range []time.Duration{0, 20 * time.Millisecond} {
				t.Run(fmt.Sprintf("S3-%s", latency), func(t *testing.T) {
					store := newBucket(t)
					store.fault.Latency(t, latency)
					b.compare(t, fmt.Sprintf("S3, answers %s later", latency), kind, store.env, store.url)
				})
			}
		})
	}
}

// compare archives the backlog with and without batches.
func (b *backlog) compare(t *testing.T, store string, kind walKind, reach []string, url string) {
	t.Helper()
	b.table(t, store, kind, rounds(scale(t, "BENCH_ROUNDS", 3),
		func() cost { return b.archive(t, reach, url, "") },
		func() cost { return b.archive(t, reach, url, "--no-batch") }))
}

func (b *backlog) table(t *testing.T, store string, kind walKind, costs []cost) {
	t.Helper()
	var out strings.Builder
	for i, name := range []string{"agent", "agent --no-batch"} {
		c := costs[i]
		fmt.Fprintf(&out, "%18s %6.2f s  %5.1f segments/s  %4.1f ms CPU each, %3.0f %% of the processors  %3.0f MB  %.2f times\n", name, c.wall.Seconds(),
			float64(b.count)/c.wall.Seconds(), c.cpu.Seconds()*1000/float64(b.count), 100*c.cpu.Seconds()/c.wall.Seconds()/float64(runtime.NumCPU()),
			float64(c.rss)/1e6, c.wall.Seconds()/costs[0].wall.Seconds())
	}
	t.Logf("a backlog of %d segments of %s to %s (asked: 50 segments/s, at least twice as fast)\n%s", b.count, kind.name, store, out.String())
}

// TestServe asks for one segment after the other, as a recovery does that takes
// no time to replay them.
func TestServe(t *testing.T) {
	count := scale(t, "BENCH_SEGMENTS", 200)
	for _, codec := range []string{"zstd", "lz4"} {
		a := newArchive(t, walKinds()[0], count, "AGENT_COMPRESSION="+codec)
		recover := filepath.Join(a.w.dir, "recovering")
		a.w.sh("mkdir -p " + recover + "/pg_wal " + recover + "/global; cp " + filepath.Join(a.s.DataDir, "global/pg_control") + " " + recover + "/global/; touch " + recover + "/recovery.signal")
		// PostgreSQL runs its commands by a shell; $1 is the name of a segment.
		loop := func(command string) func() cost {
			script := "cd " + recover + "; for f in " + strings.Join(a.segments, " ") + "; do sh -c '" + command + "' sh $f; rm pg_wal/RECOVERYXLOG; done"
			return func() cost { return a.w.sh(script) }
		}
		agent := harness.AgentBinary(t)
		costs := rounds(scale(t, "BENCH_ROUNDS", 3), loop(agent+" wal-fetch $1 pg_wal/RECOVERYXLOG"),
			loop(agent+" wal-fetch --no-prefetch $1 pg_wal/RECOVERYXLOG"), loop("cp "+a.plain+"/$1 pg_wal/RECOVERYXLOG"))
		var out strings.Builder
		for i, name := range []string{"agent", "agent --no-prefetch", "cp"} {
			fmt.Fprintf(&out, "%20s %5.1f segments/s\n", name, float64(len(a.segments))/costs[i].wall.Seconds())
		}
		t.Logf("%d segments of pgbench, asked for one after the other, from a folder, %s (asked: 60 segments/s)\n%s", len(a.segments), codec, out.String())
	}
}

// TestCalls measures a call of wal-push that finds its work done.
func TestCalls(t *testing.T) {
	for _, reach := range [][]string{nil, newBucket(t).env} {
		a := newArchive(t, walKinds()[0], 3, reach...)
		agent := harness.AgentBinary(t)
		pgwal := filepath.Join(a.w.dir, "again", "pg_wal")
		a.w.sh("mkdir -p " + pgwal + "/archive_status again/global; cp " + filepath.Join(a.s.DataDir, "global/pg_control") + " again/global/; cp " + a.plain + "/0* " + pgwal)
		first, second := a.segments[0], a.segments[1]
		a.w.sh("touch " + pgwal + "/archive_status/" + second + ".ready; " + agent + " wal-push " + pgwal + "/" + first + "; cp -r state/archived kept")
		const runs = 50
		loop := func(command string) func() cost {
			return func() cost {
				return a.w.sh(fmt.Sprintf("for i in $(seq %d); do rm -rf state/archived; cp -r kept state/archived; %s; done", runs, command))
			}
		}
		costs := rounds(3, loop(agent+" wal-push "+pgwal+"/"+second), loop(agent+" version >/dev/null"), loop("true"))
		each := func(i int) float64 { return (costs[i].wall - costs[2].wall).Seconds() * 1000 / runs }
		cpu := func(i int) float64 { return (costs[i].cpu - costs[2].cpu).Seconds() * 1000 / runs }
		t.Logf("a call that finds its work done takes %.1f ms (%.1f ms CPU), an empty run %.1f ms (%.1f ms CPU): %.2f times (asked: 1.5; 10 ms CPU for the start)",
			each(0), cpu(0), each(1), cpu(1), each(0)/each(1))
	}
}
