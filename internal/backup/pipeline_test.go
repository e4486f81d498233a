package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"agent/internal/compress"
	"agent/internal/repo"
	"agent/internal/storage"
)

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		seed ^= seed << 13
		seed ^= seed >> 7
		seed ^= seed << 17
		b[i] = byte(seed >> 32)
	}
	return b
}

// sparse is n bytes, mostly zeros, with noise here and there.
func sparse(seed uint64, n int) []byte {
	b := make([]byte, n)
	for at := int(seed*7919) % 100_000; at < n; at += 1<<20 + int(seed*104_729)%3_000_000 {
		copy(b[at:], noise(seed+uint64(at)+1, min(20_000, n-at)))
	}
	return b
}

// Any tree comes back byte for byte.
func TestPipelineRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := folder(t)
		want := make(map[string][]byte)
		put := func(path string, body []byte) {
			want[path] = body
			write(t, filepath.Join(dir, path), body)
		}
		for d := range rapid.IntRange(0, 3).Draw(rt, "directories") {
			base := fmt.Sprintf("base/%d", d+1)
			for f := range rapid.SampledFrom([]int{0, 1, 50, 600}).Draw(rt, "small files") {
				put(fmt.Sprintf("%s/%d", base, 20000+f), noise(uint64(f+1), f*37%9000))
			}
			for f := range rapid.IntRange(0, 2).Draw(rt, "files") {
				size := rapid.SampledFrom([]int{1, 8191, 8192, 1 << 20, 1<<20 + 1, batchBytes, batchBytes + 1, stretchSize, stretchSize + 1, 2*stretchSize - 1, 40 << 20}).Draw(rt, "size")
				put(fmt.Sprintf("%s/%d", base, 16384+f), sparse(uint64(f+d+1), size))
			}
		}
		write(t, filepath.Join(dir, "global/pg_control"), []byte("comes last, from elsewhere"))
		codec, err := compress.Parse(rapid.SampledFrom([]string{"zstd", "lz4", "none"}).Draw(rt, "codec"))
		if err != nil {
			rt.Fatal(err)
		}
		res, err := archive(t, dir, openFolder(t), codec, rapid.IntRange(1, 5).Draw(rt, "workers"), nil, slog.New(slog.DiscardHandler))
		if err != nil {
			rt.Fatal(err)
		}
		entries, files := res.content(t)
		if !slices.IsSortedFunc(entries, func(a, b repo.Entry) int { return repo.ComparePaths(a.Path, b.Path) }) {
			rt.Fatal("not in order")
		}
		if len(files) != len(want) || res.meter.files.Load() != int64(len(want)) {
			rt.Fatalf("%d of %d files, %d counted", len(files), len(want), res.meter.files.Load())
		}
		for path, body := range want {
			if !bytes.Equal(files[path], body) {
				rt.Fatalf("%s: %d bytes, not the %d that were read", path, len(files[path]), len(body))
			}
		}
	})
}

// Thousands of directories behind one small file, whose batch is not full:
// the collector waits for the file, and the walk for the collector.
func TestPipelineDoesNotWaitForItself(t *testing.T) {
	for _, workers := range []int{1, 4} {
		dir := folder(t)
		write(t, filepath.Join(dir, "a"), []byte("small"))
		for n := range 3000 {
			if err := os.Mkdir(filepath.Join(dir, fmt.Sprintf("d%04d", n)), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		write(t, filepath.Join(dir, "z"), []byte("small, too"))
		res, err := archive(t, dir, openFolder(t), compress.Setting{}, workers, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		entries, files := res.content(t)
		if len(entries) != 3002 || string(files["a"]) != "small" || string(files["z"]) != "small, too" {
			t.Fatalf("%d entries", len(entries))
		}
	}
}

// denying is a bucket that takes no packs.
type denying struct{ storage.Bucket }

func (d denying) Put(ctx context.Context, key string, src storage.Source, o storage.PutOptions) (storage.Info, error) {
	if strings.Contains(key, "/pack/") {
		return storage.Info{}, storage.ErrNoSpace
	}
	return d.Bucket.Put(ctx, key, src, o)
}

// A failing store ends the pipeline with its reason.
func TestPipelineUploadFails(t *testing.T) {
	dir := folder(t)
	for n := range 8 {
		write(t, filepath.Join(dir, fmt.Sprintf("base/5/%d", 16384+n)), noise(uint64(n+1), 25<<20))
	}
	_, err := archive(t, dir, denying{openFolder(t)}, compress.Setting{Method: compress.None}, 2, nil, slog.New(slog.DiscardHandler))
	if !errors.Is(err, storage.ErrNoSpace) {
		t.Fatalf("got %v", err)
	}
}

// Damaged pages of a relation are found on their way, wherever they are.
func TestPipelineFindsBadPages(t *testing.T) {
	dir := folder(t)
	var body []byte
	for n := range uint32(2500) {
		p := page(n, 1, byte(n))
		if n == 0 || n == 2047 || n == 2048 || n == 2499 {
			p = damage(p)
		}
		body = append(body, p...)
	}
	write(t, filepath.Join(dir, "base/5/16384"), body)
	res, err := archive(t, dir, openFolder(t), compress.Setting{}, 2, &pageChecker{enabled: true, block: block, segBlocks: 131072, start: 1 << 40}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(res.bad.sample)
	want := []string{"base/5/16384 block 0", "base/5/16384 block 2047", "base/5/16384 block 2048", "base/5/16384 block 2499"}
	if d := cmp.Diff(want, res.bad.sample); d != "" {
		t.Fatal(d)
	}
	if _, files := res.content(t); !bytes.Equal(files["base/5/16384"], body) {
		t.Fatal("damaged pages are not backed up as they are")
	}
}

func TestWalker(t *testing.T) {
	dir, space, wal := folder(t), folder(t), folder(t)
	for _, p := range []string{
		"PG_VERSION", "postgresql.conf", "global/pg_control", "global/1262", "global/pg_internal.init",
		"base/5/16384", "base/5/16384.1", "base/5/16384_vm", "base/5/t3_16399", "base/5/pg_internal.init.7",
		"base/5/16500", "base/5/16500.1", "base/5/16500_fsm", "base/5/16500_init", "base/pgsql_tmp/pgsql_tmp1.0",
		"pg_stat_tmp/global.stat", "pg_replslot/slot/state", "pg_subtrans/0000", "pg_xact/0000",
		"postmaster.pid", "postmaster.opts", "backup_label", "backup_label.old", "standby.signal", ".agent-wal-1-x",
		"state/pins/x", "pg_tblspc/16386/PG_15_202209061/5/1",
	} {
		write(t, filepath.Join(dir, p), []byte("x"))
	}
	write(t, filepath.Join(space, "PG_15_202209061/5/16400"), nil)
	write(t, filepath.Join(space, "PG_14_202107181/5/16400"), nil)
	write(t, filepath.Join(space, "PG_15_202209061/5/16401_init"), nil)
	write(t, filepath.Join(space, "PG_15_202209061/5/16401"), nil)
	write(t, filepath.Join(wal, "000000010000000000000001"), nil)
	for link, to := range map[string]string{
		"pg_wal": wal, "pg_tblspc/16385": space, "pg_tblspc/16390": "/nowhere/at/all", "elsewhere": space, "pg_tblspc/x": space,
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	state, err := os.Stat(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	w := &walker{root: dir, versionDir: "PG_15_202209061", avoid: []fs.FileInfo{state}, log: slog.New(slog.DiscardHandler)}
	w.visit = func(s source) error {
		kind := map[repo.EntryKind]string{repo.EntryDir: "/", repo.EntryTablespace: " -> " + s.Location}[s.Kind]
		got = append(got, s.Path+kind)
		return nil
	}
	if err := w.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"PG_VERSION", "base/", "base/5/", "base/5/16384", "base/5/16384.1", "base/5/16384_vm", "base/5/16500_init",
		"global/", "global/1262", "pg_replslot/", "pg_stat_tmp/", "pg_subtrans/",
		"pg_tblspc/", "pg_tblspc/16385 -> " + space, "pg_tblspc/16385/PG_15_202209061/", "pg_tblspc/16385/PG_15_202209061/5/",
		"pg_tblspc/16385/PG_15_202209061/5/16400", "pg_tblspc/16385/PG_15_202209061/5/16401_init",
		"pg_tblspc/16386/", "pg_tblspc/16386/PG_15_202209061/", "pg_tblspc/16386/PG_15_202209061/5/", "pg_tblspc/16386/PG_15_202209061/5/1",
		"pg_wal/", "pg_xact/", "pg_xact/0000", "postgresql.conf",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	stop := errors.New("stop")
	w.visit = func(source) error { return stop }
	if err := w.run(t.Context()); !errors.Is(err, stop) {
		t.Fatalf("got %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if err := w.run(ctx); !errors.Is(err, stop) {
		t.Fatalf("got %v", err)
	}
}

// Files begin at whole blocks of their pack, so that page files are counted in
// blocks whatever lies beside them.
func TestPipelineAligns(t *testing.T) {
	dir := folder(t)
	write(t, filepath.Join(dir, "a"), []byte("five."))
	write(t, filepath.Join(dir, "base/5/16384"), noise(1, 3*block))
	write(t, filepath.Join(dir, "base/5/16385"), noise(2, 200*block))
	res, err := archive(t, dir, openFolder(t), compress.Setting{}, 1, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	packs, err := res.repo.LoadPacks(t.Context(), res.backup)
	if err != nil {
		t.Fatal(err)
	}
	root, err := res.repo.OpenManifest(t.Context(), res.backup)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	m, err := root.Read(packs)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	runs := 0
	for {
		e, parts, err := m.Next(t.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			for _, r := range p.Runs {
				runs++
				if r.Raw%block != 0 {
					t.Fatalf("%s begins in the middle of a block: %s", e.Path, r)
				}
			}
		}
	}
	if runs < 3 {
		t.Fatalf("%d runs", runs)
	}
}
