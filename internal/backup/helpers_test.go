package backup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"agent/internal/compress"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
	"agent/internal/storage/fs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	cluster repo.ClusterID  = 7
	name    repo.BackupName = "20261120T101530Z-k3v7qa"
	block                   = 8192
)

// page is a page with a right checksum.
func page(blkno uint32, lsn postgres.LSN, fill byte) []byte {
	p := make([]byte, block)
	for i := range p[24:] {
		p[24+i] = fill + byte(i)
	}
	binary.LittleEndian.PutUint32(p, uint32(lsn>>32))
	binary.LittleEndian.PutUint32(p[4:], uint32(lsn))
	binary.LittleEndian.PutUint16(p[12:], 100)
	binary.LittleEndian.PutUint16(p[14:], 200)
	binary.LittleEndian.PutUint16(p[18:], block|4)
	binary.LittleEndian.PutUint16(p[8:], postgres.PageChecksum(p, blkno))
	return p
}

func damage(p []byte) []byte {
	d := append([]byte{}, p...)
	d[5000] ^= 1
	return d
}

func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "backup-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func write(t testing.TB, path string, body []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, body, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// result is what a run of the pipeline stored.
type result struct {
	repo   *repo.Repository
	backup *repo.Backup
	meter  meter
	bad    badPages
}

// archive runs the pipeline over a directory into a repository.
func archive(t testing.TB, dir string, bucket storage.Bucket, codec compress.Setting, workers int, pages *pageChecker, log *slog.Logger) (*result, error) {
	t.Helper()
	r := repo.New([]repo.Place{{Name: "main", Bucket: bucket, Required: true}}, repo.Options{SpoolDir: t.TempDir(), Codec: codec, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	res := &result{repo: r, backup: &repo.Backup{Name: name, Cluster: cluster}}
	g, gctx := errgroup.WithContext(t.Context())
	set := r.NewPackSet(gctx, g, cluster, name, 2)
	m, err := r.NewManifestWriter(set, repo.ManifestHeader{Backup: name, BlockSize: block, Mode: 0o700}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	data := set.Writer(repo.PackData)
	w := &walker{root: dir, versionDir: "PG_15_202209061", log: log}
	if pages == nil {
		pages = &pageChecker{}
	}
	pages.bad = &res.bad
	err = copyFiles(gctx, w, data, m, copyOptions{
		name: name, workers: workers, codec: codec, block: block, pages: pages, meter: &res.meter,
	})
	if err == nil {
		err = data.Close()
	}
	if err == nil {
		_, err = m.Finish(gctx)
	}
	if werr := g.Wait(); werr != nil {
		err = werr
	}
	if err != nil {
		return res, err
	}
	list, err := set.Packs()
	if err != nil {
		return res, err
	}
	if res.backup.Manifest, err = m.Store(t.Context()); err != nil {
		return res, err
	}
	encoded, err := r.EncodePacks(list)
	if err != nil {
		return res, err
	}
	res.backup.Packs, err = r.StorePacks(t.Context(), cluster, name, encoded)
	return res, err
}

// content reads everything back through the manifest.
func (r *result) content(t testing.TB) (entries []repo.Entry, files map[string][]byte) {
	t.Helper()
	ctx := t.Context()
	packs, err := r.repo.LoadPacks(ctx, r.backup)
	if err != nil {
		t.Fatal(err)
	}
	root, err := r.repo.OpenManifest(ctx, r.backup)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	m, err := root.Read(packs)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	raw := make(map[repo.PackID][]byte)
	files = make(map[string][]byte)
	for {
		e, parts, err := m.Next(ctx)
		if errors.Is(err, io.EOF) {
			return entries, files
		}
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
		if e.Kind != repo.EntryFile {
			continue
		}
		body := make([]byte, 0, e.Size)
		for _, p := range parts {
			for _, run := range p.Runs {
				if run.Zero() {
					body = append(body, make([]byte, run.Length)...)
					continue
				}
				id := p.Section.PackOf(run).PackID
				if raw[id] == nil {
					raw[id] = openPack(t, r, packs[id])
				}
				body = append(body, raw[id][run.Raw:run.Raw+run.Length]...)
			}
		}
		files[e.Path] = body
	}
}

// openPack decodes a whole pack.
func openPack(t testing.TB, r *result, p repo.Pack) []byte {
	t.Helper()
	stored := make([]byte, p.Size)
	err := r.repo.ReadPack(t.Context(), cluster, name, p, func(s *repo.PackStream) error {
		return errors.Join(s.ReadFrame(0, stored), s.Finish())
	})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(compress.NewReader(bytes.NewReader(stored)))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func openFolder(t testing.TB) storage.Bucket {
	t.Helper()
	b, err := fs.Open(t.Context(), folder(t))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
