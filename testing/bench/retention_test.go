//go:build bench

package bench_test

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"agent/internal/compress"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage/fs"
	"agent/testing/harness"
)

const (
	keptCluster repo.ClusterID       = 7312345678901234567
	keptSegment postgres.SegmentSize = 16 << 20
	keptPacks                        = 1000 // in the list of each backup: some 100 GB
)

// keeping is a repository of many hourly backups and of much WAL, whose objects
// are next to empty.
type keeping struct {
	b    *bench
	dir  string
	repo *repo.Repository
	now  time.Time
}

func newKeeping(t *testing.T, backups, segments int) *keeping {
	t.Helper()
	top := harness.TempDir(t)
	k := &keeping{dir: filepath.Join(top, "repo"), now: time.Now()}
	k.b = &bench{t: t, dir: top, env: append(os.Environ(), "AGENT_REPOSITORY="+k.dir, "AGENT_STATE_DIR="+filepath.Join(top, "state"), "AGENT_LOG_LEVEL=error")}
	k.agent("repo", "init")
	bucket, err := fs.Open(t.Context(), k.dir)
	if err != nil {
		t.Fatal(err)
	}
	codec, err := compress.Parse("zstd")
	if err != nil {
		t.Fatal(err)
	}
	k.repo = repo.New([]repo.Place{{Name: "main", Bucket: bucket, Required: true}}, repo.Options{
		Codec: codec, Log: slog.New(slog.DiscardHandler), Now: time.Now, Version: "bench", SpoolDir: top,
	})
	if err := k.repo.EnsureCluster(t.Context(), repo.Cluster{ID: keptCluster, Major: 17, BlockSize: 8192, RelSegBlocks: 131072, SegmentSize: keptSegment}); err != nil {
		t.Fatal(err)
	}
	each := segments / backups
	full := repo.BackupName("")
	for i := range backups {
		at := k.now.Add(-time.Duration(backups-i) * time.Hour)
		if i%168 == 0 {
			full = ""
		}
		full = k.backup(i, i*each+1, at, full)
		for n := i*each + 1; n <= (i+1)*each; n++ {
			k.segment(n, at)
		}
	}
	return k
}

func (k *keeping) agent(args ...string) cost {
	k.b.t.Helper()
	cmd := exec.CommandContext(k.b.t.Context(), harness.AgentBinary(k.b.t), args...)
	cmd.Dir, cmd.Env = k.b.dir, k.b.env
	return k.b.run(cmd)
}

func (k *keeping) file(key string, at time.Time) {
	path := filepath.Join(k.dir, key)
	err := os.WriteFile(path, []byte("x"), 0o600)
	if os.IsNotExist(err) {
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.WriteFile(path, []byte("x"), 0o600)
		}
	}
	if err == nil {
		err = os.Chtimes(path, at, at)
	}
	if err != nil {
		k.b.t.Fatal(err)
	}
}

func (k *keeping) segment(n int, at time.Time) {
	name := postgres.Segment{Timeline: 1, Number: uint64(n)}.Name(keptSegment)
	k.file(fmt.Sprintf("cluster/%020d/wal/%s/%s", uint64(keptCluster), name[:16], name), at)
}

// backup makes one with a few packs of its own, which borrows the others.
func (k *keeping) backup(i, first int, at time.Time, full repo.BackupName) repo.BackupName {
	t := k.b.t
	name, err := repo.NewBackupName(at)
	if err != nil {
		t.Fatal(err)
	}
	b := &repo.Backup{
		Format: repo.Format, Name: name, Type: repo.TypeFull, Cluster: keptCluster, PostgresVersion: 170000, Started: at, Stopped: at.Add(time.Minute), Timeline: 1,
		SegmentSize: keptSegment, BlockSize: 8192, StartLSN: postgres.LSN(uint64(first)*uint64(keptSegment) + 40), StopLSN: postgres.LSN(uint64(first)*uint64(keptSegment) + 4000),
		StartSegment: postgres.Segment{Timeline: 1, Number: uint64(first)}.Name(keptSegment), StopSegment: postgres.Segment{Timeline: 1, Number: uint64(first)}.Name(keptSegment),
	}
	own := keptPacks
	if full != "" {
		b.Type, b.Full, b.Parent, b.Depth, own = repo.TypeIncremental, full, full, i%168, 5
	}
	packs := make([]repo.Pack, keptPacks)
	for n := range packs {
		packs[n] = repo.Pack{Number: uint32(n), Kind: repo.PackData, Size: 32 << 20}
		for i := 0; i < 32; i += 8 {
			binary.LittleEndian.PutUint64(packs[n].SHA256[i:], rand.Uint64())
		}
		if n >= own {
			packs[n].Lender = full
		} else {
			k.file(fmt.Sprintf("cluster/%020d/backup/%s/pack/%08x", uint64(keptCluster), name, n), at)
		}
	}
	list, err := k.repo.EncodePacks(packs)
	if err != nil {
		t.Fatal(err)
	}
	if b.Packs, err = k.repo.StorePacks(t.Context(), keptCluster, name, list); err != nil {
		t.Fatal(err)
	}
	if _, err := k.repo.StoreBackup(t.Context(), b, nil); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(k.dir, fmt.Sprintf("cluster/%020d/backup/%s", uint64(keptCluster), name))
	for _, f := range []string{"packs", "backup.json"} {
		if err := os.Chtimes(filepath.Join(dir, f), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if full == "" {
		return name
	}
	return full
}

// TestKeeping shows how the commands that look at a whole repository grow with it.
func TestKeeping(t *testing.T) {
	most := scale(t, "BENCH_SEGMENTS", 1_000_000)
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "segments\tbackups\tbackup-list s\tpeak MB\tdelete expire, plan s\tpeak MB\t--confirm s\tpeak MB\trepo info s\tpeak MB\t")
	for _, part := range []int{10, 3, 1} {
		segments := most / part
		k := newKeeping(t, segments/1000, segments)
		expire := []string{"delete", "expire", "--keep-window=7d", "--keep-daily=14", "--keep-monthly=12"}
		runs := []cost{k.agent("backup-list"), k.agent(expire...), {}, k.agent("repo", "info")}
		runs[2] = k.agent(append(expire, "--confirm")...)
		fmt.Fprintf(w, "%d\t%d\t", segments, segments/1000)
		for _, c := range runs {
			fmt.Fprintf(w, "%.2f\t%.0f\t", c.wall.Seconds(), float64(c.rss)/1e6)
		}
		fmt.Fprintln(w)
		if err := os.RemoveAll(k.dir); err != nil {
			t.Fatal(err)
		}
	}
	w.Flush()
	t.Logf("a repository in a folder in memory, its WAL and backups of %d packs\n%s", keptPacks, out.String())
}
