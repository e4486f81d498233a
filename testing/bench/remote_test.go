//go:build bench

package bench_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"agent/testing/harness"
	"agent/testing/stores"
)

// bucket is an S3 server whose answers come late by request.
type bucket struct {
	fault *stores.FaultProxy
	url   string
	env   []string
}

func newBucket(t *testing.T) bucket {
	t.Helper()
	// Data in memory and no MD5, so that the server is not what is measured.
	t.Setenv("TMPDIR", "/dev/shm")
	s := stores.StartVersityGW(t, stores.S3Options{Fast: true})
	fault := stores.NewFaultProxy(t, s.Address)
	url := s.RepositoryURL(s.NewBucket(t, stores.S3Bucket{}), "bench")
	return bucket{fault: fault, url: url, env: append(s.Env(), "AWS_ENDPOINT_URL=http://"+fault.Address, "AGENT_REPOSITORY="+url)}
}

// late runs f with and without latency in turn, and gives the best of each.
func (b bucket) late(t *testing.T, n int, latency time.Duration, f func() cost) []cost {
	t.Helper()
	return rounds(n, func() cost {
		b.fault.Latency(t, latency)
		defer b.fault.Heal()
		return f()
	}, f)
}

// remove is for what a round leaves.
func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// TestLatency measures what 50 ms more for each request cost a backup, a
// restore and the archiving of 64 segments.
func TestLatency(t *testing.T) {
	b := newBucket(t)
	s, w, size := site(t, scale(t, "BENCH_SCALE", 140), b.env...)
	names := []string{"50 ms later", "at once"}

	costs := b.late(t, 3, 50*time.Millisecond, func() cost {
		s.Exec(t, "SELECT pg_switch_wal()")
		return w.agent(nil, "backup-push", "--full")
	})
	table(t, fmt.Sprintf("backup-push of %.1f GB to S3", float64(size)/1e9), size, names, costs)

	dest := filepath.Join(w.dir, "restored")
	costs = b.late(t, 3, 50*time.Millisecond, func() cost {
		c := w.agent(nil, "backup-fetch", dest)
		remove(t, dest)
		return c
	})
	table(t, fmt.Sprintf("backup-fetch of %.1f GB from S3", float64(size)/1e9), size, names, costs)

	// Sixty-four segments of its own WAL, given to fresh repositories.
	const count = 64
	w.sh("mkdir -p cluster/pg_wal/archive_status")
	var script strings.Builder
	for i := range count {
		name := fmt.Sprintf("0000000100000000000000%02X", i+3)
		w.agent(nil, "wal-fetch", name, filepath.Join(w.dir, "cluster", "pg_wal", name))
		// As the server's archiver does it.
		fmt.Fprintf(&script, "%s wal-push cluster/pg_wal/%s; mv cluster/pg_wal/archive_status/%[2]s.{ready,done}\n", harness.AgentBinary(t), name)
	}
	round := 0
	costs = b.late(t, 2, 50*time.Millisecond, func() cost {
		round++
		env := fmt.Sprintf("AGENT_REPOSITORY=%s-%d", b.url, round)
		w.agent([]string{env}, "repo", "init")
		w.sh("cd cluster/pg_wal; rm -f archive_status/*; for s in 0*; do touch archive_status/$s.ready; done")
		return w.sh(script.String(), env)
	})
	table(t, fmt.Sprintf("wal-push of a backlog of %d segments to S3", count), count*16<<20, names, costs)
}

// TestSmallFiles restores 94 MB in 4,000 files over 60 ms.
func TestSmallFiles(t *testing.T) {
	b := newBucket(t)
	s, w, _ := site(t, 1, b.env...)
	s.Exec(t, `DO $$ BEGIN FOR i IN 1..1300 LOOP EXECUTE format('CREATE TABLE t%s (a int PRIMARY KEY, b text)', i);
		EXECUTE format('INSERT INTO t%s SELECT g, md5(g::text) FROM generate_series(1, 200) g', i); END LOOP; END $$`, "CHECKPOINT")
	files := strings.TrimSpace(w.output("find " + s.DataDir + "/base -type f | wc -l"))
	size := s.QueryInt(t, "SELECT sum(pg_database_size(oid))::bigint FROM pg_database")
	dest := filepath.Join(w.dir, "restored")
	w.agent(nil, "backup-push")
	costs := b.late(t, 3, 60*time.Millisecond, func() cost {
		c := w.agent(nil, "backup-fetch", dest)
		remove(t, dest)
		return c
	})
	table(t, fmt.Sprintf("backup-fetch of %.0f MB in %s files (asked: under 5 s over 60 ms)", float64(size)/1e6, files), size,
		[]string{"60 ms later", "at once"}, costs)
}

// TestLikeWALG is the size and latency at which WAL-G took 3.7 s for a full
// backup and 4.4 s for its restore.
func TestLikeWALG(t *testing.T) {
	b := newBucket(t)
	_, w, size := site(t, scale(t, "BENCH_670", 43), b.env...)
	push := b.late(t, 3, 20*time.Millisecond, func() cost { return w.agent(nil, "backup-push", "--full") })
	dest := filepath.Join(w.dir, "restored")
	fetch := b.late(t, 3, 20*time.Millisecond, func() cost {
		c := w.agent(nil, "backup-fetch", dest)
		remove(t, dest)
		return c
	})
	table(t, fmt.Sprintf("%.0f MB over 20 ms (WAL-G: 3.7 s and 4.4 s)", float64(size)/1e6), size,
		[]string{"backup-push", "backup-fetch"}, []cost{push[0], fetch[0]})
}
