//go:build bench

package bench_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"agent/internal/compress"
	"agent/internal/postgres"
	"agent/testing/harness"
)

// made is what backup-push --json says of a backup.
type made struct {
	Name      string       `json:"name"`
	Type      string       `json:"type"`
	Detector  string       `json:"detector"`
	StartLSN  postgres.LSN `json:"start_lsn"`
	DataBytes int64        `json:"data_bytes"`
	Stored    int64        `json:"stored_bytes"`
}

// work is a backup or a restore and what the kernel says of it.
type work struct {
	cost
	made
	read, wrote int64 // bytes by read and write calls, cached or not
}

// watched runs the agent and follows its counters.
func (b *bench) watched(args ...string) work {
	b.t.Helper()
	cmd := harness.Command(context.Background(), b.t, b.dir, b.env, harness.AgentBinary(b.t), args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	w := work{}
	done := make(chan struct{})
	seen := make(chan struct{})
	go func() {
		defer close(seen)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			w.counters(cmd)
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	w.wall = time.Since(began)
	close(done)
	<-seen
	if err != nil {
		b.t.Fatalf("%s: %v", cmd, err)
	}
	w.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if out.Len() > 0 && strings.HasPrefix(out.String(), "{") {
		if err := json.Unmarshal([]byte(out.String()), &w.made); err != nil {
			b.t.Fatal(err)
		}
	}
	return w
}

// counters notes the newest figures of /proc/PID/io.
func (w *work) counters(cmd *exec.Cmd) {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", cmd.Process.Pid))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(body)) {
		var n int64
		if ok, _ := fmt.Sscanf(line, "rchar: %d", &n); ok == 1 {
			w.read = max(w.read, n)
		}
		if ok, _ := fmt.Sscanf(line, "wchar: %d", &n); ok == 1 {
			w.wrote = max(w.wrote, n)
		}
	}
	w.rss = max(w.rss, highWater(cmd.Process.Pid))
}

// change updates one row on each of 1% of the pages, scattered by a hash.
func change(t *testing.T, s *harness.Server, round int) {
	t.Helper()
	s.Exec(t, fmt.Sprintf("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid %% 55 = 0 AND abs(hashint8(aid::bigint * 1000 + %d)) %% 100 = 0", round),
		"CHECKPOINT", "SELECT pg_switch_wal()")
}

// least is what must be stored of a change since an LSN: the changed pages and
// the files that go whole, compressed as the agent does.
func least(t *testing.T, dataDir string, since postgres.LSN) int64 {
	t.Helper()
	codec, err := compress.Parse("zstd")
	if err != nil {
		t.Fatal(err)
	}
	enc, err := compress.NewEncoder(codec)
	if err != nil {
		t.Fatal(err)
	}
	var frame []byte
	total := int64(0)
	flush := func() {
		stored, err := enc.AppendFrame(nil, frame)
		if err != nil {
			t.Fatal(err)
		}
		total += int64(len(stored))
		frame = frame[:0]
	}
	page := make([]byte, 8192)
	for _, root := range []string{"base", "global", "pg_xact", "pg_multixact"} {
		err := filepath.WalkDir(filepath.Join(dataDir, root), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, _ := filepath.Rel(dataDir, path)
			class := postgres.ClassifyPath(rel)
			main := class.Relation && class.Rel.Fork == postgres.MainFork
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			for {
				n, err := io.ReadFull(f, page)
				if n > 0 && (!main || postgres.PageLSN(page) >= since) {
					if len(frame)+n > compress.MaxFrame {
						flush()
					}
					frame = append(frame, page[:n]...)
				}
				if err != nil {
					return nil
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	flush()
	return total
}

// TestIncremental compares incremental backups with a full one, and restores of
// chains with that of a full one.
func TestIncremental(t *testing.T) {
	major := scale(t, "BENCH_MAJOR", 17)
	s, b, size := incrementalSite(t, major, scale(t, "BENCH_INCREMENTAL", 330))
	archived := func() { b.sh(s.Tool("psql") + ` -XAtqc "SELECT pg_switch_wal()"`) }
	n := scale(t, "BENCH_ROUNDS", 3)
	best := func(old, new work) work {
		if old.wall == 0 || new.wall < old.wall {
			return new
		}
		return old
	}
	var full work
	for range n {
		archived()
		full = best(full, b.watched("backup-push", "--full", "--json"))
	}
	cat := rounds(1, func() cost {
		return b.sh("find " + s.DataDir + " -type f -not -path '*/pg_wal/*' -print0 | xargs -0 cat >/dev/null")
	})[0]
	restored := filepath.Join(b.dir, "restored")
	fetch := func(name string) work {
		var w work
		for range n {
			b.sh("rm -rf restored; sync -f .")
			w = best(w, b.watched("backup-fetch", restored, name))
		}
		return w
	}
	alone := fetch(full.Name)

	detectors := []string{"summaries", "lsn"}
	if major >= 17 {
		detectors = append(detectors, "server")
	}
	parent := b.watched("backup-push", "--full", "--json")
	change(t, s, 0)
	floor := least(t, s.DataDir, parent.StartLSN)
	var out strings.Builder
	fmt.Fprintf(&out, "%.2f GB; full: %.2f s, %.1f MB read, %.1f MB stored; cat %.2f s\n", float64(size)/1e9, full.wall.Seconds(), float64(full.read)/1e6, float64(full.Stored)/1e6, cat.wall.Seconds())
	for _, d := range detectors {
		var w work
		for range n {
			archived()
			w = best(w, b.watched("backup-push", "--parent", parent.Name, "--detect", d, "--json"))
		}
		fmt.Fprintf(&out, "%s (%s %s): %.2f s (full %.1fx), read %.2f%%, stored %.2f MB (%.2fx of the least), CPU %.2f s, %.0f MB\n", d, w.Type, w.Detector, w.wall.Seconds(),
			full.wall.Seconds()/w.wall.Seconds(), 100*float64(w.read)/float64(size), float64(w.Stored)/1e6, float64(w.Stored)/float64(floor), w.cpu.Seconds(), float64(w.rss)/1e6)
	}
	last := b.watched("backup-push", "--json")
	for round := range 7 {
		change(t, s, round+1)
		last = b.watched("backup-push", "--json")
	}
	chain := fetch(last.Name)
	fmt.Fprintf(&out, "restore: full %.2f s, wrote %.3f of the data; full + 7 incrementals %.2f s (%.2fx), wrote %.3f of the data, read %.1f MB instead of %.1f, %.0f MB\n", alone.wall.Seconds(), float64(alone.wrote)/float64(full.DataBytes),
		chain.wall.Seconds(), chain.wall.Seconds()/alone.wall.Seconds(), float64(chain.wrote)/float64(last.DataBytes), float64(chain.read)/1e6, float64(alone.read)/1e6, float64(chain.rss)/1e6)
	t.Log("\n" + out.String())
}

// incrementalSite is a site whose pages have room for new versions of rows.
func incrementalSite(t *testing.T, major, scale int) (*harness.Server, *bench, int64) {
	t.Helper()
	dir := harness.TempDir(t)
	env := []string{"AGENT_REPOSITORY=" + filepath.Join(dir, "repo"), "AGENT_STATE_DIR=" + filepath.Join(dir, "state"), "AGENT_LOG_LEVEL=error"}
	b := &bench{t: t, dir: dir, env: env}
	b.agent(nil, "repo", "init")
	conf := map[string]string{
		"archive_mode": "on", "archive_command": harness.AgentBinary(t) + " wal-push %p",
		"max_wal_size": "2GB", "shared_buffers": "512MB", "autovacuum": "off",
	}
	if major >= 17 {
		conf["summarize_wal"] = "on"
	}
	s := harness.Start(t, harness.Options{Major: major, Env: env, NoFsync: true, Conf: conf})
	b.env = slices.Concat(b.env, s.Env())
	s.Run(t, "pgbench", "-i", "-q", "-F", "90", "-s", fmt.Sprint(scale))
	s.Exec(t, "CHECKPOINT", "SELECT pg_switch_wal()")
	size := s.QueryInt(t, "SELECT sum(pg_database_size(oid))::bigint FROM pg_database")
	return s, b, size
}
