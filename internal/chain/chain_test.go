package chain

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
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"agent/internal/compress"
	"agent/internal/crypto"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
	storagefs "agent/internal/storage/fs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	cluster = repo.ClusterID(7_321_654_987_321_654_987)
	block   = 8192
	files   = 1500 // more than a section takes
)

// beside is a backup that runs beside all others.
const beside repo.BackupName = "20261120T101530Z-beside"

var began = time.Date(2026, 11, 20, 10, 15, 30, 0, time.UTC)

// site is a repository for whose sections this host has only the recipients,
// and a state directory.
type site struct {
	t        *testing.T
	state    string
	bucket   storage.Bucket
	keys     repo.Keys // without identities
	identity string
	log      bytes.Buffer
	repo     *repo.Repository
	store    *Store
}

func newSite(t *testing.T) *site {
	t.Helper()
	identity, recipient, err := crypto.Generate(false)
	if err != nil {
		t.Fatal(err)
	}
	to, err := crypto.ParseRecipients([]string{recipient})
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := storagefs.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, state: t.TempDir(), bucket: bucket, keys: repo.Keys{Data: to, WAL: to, Meta: to}, identity: identity}
	s.open(false)
	if _, err := s.repo.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// open makes new handles, as a new process has them.
func (s *site) open(identity bool) {
	s.t.Helper()
	keys := s.keys
	if identity {
		keys.Identities = crypto.NewIdentities(s.t.Context(), crypto.Sources{Text: s.identity})
	}
	codec, err := compress.Parse("zstd")
	if err != nil {
		s.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(&s.log, nil))
	s.repo = repo.New([]repo.Place{{Name: "main", Bucket: s.bucket, Required: true}}, repo.Options{
		Keys: keys, Codec: codec, Log: log, Now: func() time.Time { return began }, Version: "test", SpoolDir: filepath.Join(s.state, "spool"),
	})
	s.store = New(s.state, s.repo, cluster, log)
}

func name(n int) repo.BackupName {
	return repo.BackupName(fmt.Sprintf("20261120T1015%02dZ-k3v7qa", n))
}

// content is what a manifest says of its files.
type content map[string]string

func readAll(ctx context.Context, m *repo.Manifest, packs map[repo.PackID]repo.Pack, each func(repo.Entry, []repo.FilePart) error) (err error) {
	r, err := m.Read(packs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for {
		e, parts, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = each(e, parts)
		}
		if err != nil {
			return err
		}
	}
}

func (c content) add(e repo.Entry, parts []repo.FilePart) error {
	var runs []string
	for _, p := range parts {
		for _, r := range p.Runs {
			if r.Zero() {
				runs = append(runs, r.String())
				continue
			}
			// Not by the index in the section, which another section may have, too.
			runs = append(runs, fmt.Sprintf("%d bytes at %d of %v", r.Length, r.Raw, p.Section.PackOf(r).PackID))
		}
	}
	c[e.Path] = strings.Join(runs, ", ")
	return nil
}

// backup makes backup n, which takes all but one file of the one before.
func (s *site) backup(n int) (*repo.Backup, content) {
	s.t.Helper()
	b, all, err := s.tryBackup(n)
	if err != nil {
		s.t.Fatal(err)
	}
	return b, all
}

func (s *site) tryBackup(n int) (_ *repo.Backup, all content, err error) {
	ctx := s.t.Context()
	b := &repo.Backup{
		Format: repo.Format, Name: name(n), Type: repo.TypeFull, Cluster: cluster, Timeline: 1, SegmentSize: 16 << 20, BlockSize: block,
		StartSegment: "000000010000000000000001", StopSegment: "000000010000000000000001", Started: began, Stopped: began,
		StopLSN: postgres.LSN(100 * n),
	}
	keep := s.store.Begin(b.Name)
	defer func() { err = errors.Join(err, keep.Close()) }()
	group, gctx := errgroup.WithContext(ctx)
	set := s.repo.NewPackSet(gctx, group, cluster, b.Name, 2)
	m, err := s.repo.NewManifestWriter(set, repo.ManifestHeader{Backup: b.Name, BlockSize: block, Mode: 0o700}, keep)
	if err != nil {
		return nil, nil, err
	}
	defer m.Close()
	data := set.Writer(repo.PackData)
	ref, err := data.Append(gctx, bytes.Repeat([]byte{byte(n)}, 100), block)
	if err != nil {
		return nil, nil, err
	}
	id := repo.PackID{Backup: b.Name, Number: ref.Pack}
	own := []repo.FilePart{{
		Part:    repo.Part{Runs: []repo.Run{{Length: block, Pack: 1}}},
		Section: &repo.Section{Packs: []repo.PackFrames{{PackID: id, Frames: []repo.Frame{ref.Frame()}}}}, Index: -1,
	}}
	all = make(content)
	add := func(e repo.Entry, parts []repo.FilePart) error {
		if e.Path == fmt.Sprintf("base/%04d", files-n) {
			parts = own
		}
		return errors.Join(m.Add(gctx, e, parts), all.add(e, parts))
	}
	var lent map[repo.PackID]repo.Pack
	if n == 0 {
		for i := range files {
			if err := add(repo.Entry{Kind: repo.EntryFile, Path: fmt.Sprintf("base/%04d", i), Mode: 0o600, ModTime: began, Size: block}, own); err != nil {
				return nil, nil, err
			}
		}
	} else {
		parent, err := s.repo.LoadBackup(ctx, cluster, name(n-1))
		if err != nil {
			return nil, nil, err
		}
		var old *repo.Manifest
		if old, lent, err = s.store.Open(ctx, parent); err != nil {
			return nil, nil, err
		}
		defer old.Close()
		if err := readAll(gctx, old, lent, add); err != nil {
			return nil, nil, err
		}
		b.Type, b.Parent = repo.TypeIncremental, parent.Name
	}
	_, err = m.Finish(gctx)
	if err := errors.Join(err, data.Close(), group.Wait()); err != nil {
		return nil, nil, err
	}
	packs, err := set.Packs()
	if err != nil {
		return nil, nil, err
	}
	borrowed, err := m.Borrowed(lent)
	if err != nil {
		return nil, nil, err
	}
	list, err := s.repo.EncodePacks(append(packs, borrowed...))
	if err != nil {
		return nil, nil, err
	}
	if b.Packs, err = s.repo.StorePacks(ctx, cluster, b.Name, list); err != nil {
		return nil, nil, err
	}
	if b.Manifest, err = m.Store(ctx); err != nil {
		return nil, nil, err
	}
	if _, err := s.repo.StoreBackup(ctx, b, borrowed); err != nil {
		return nil, nil, err
	}
	return b, all, keep.Commit(b, list, borrowed, func(n repo.BackupName) bool { return n == beside })
}

// read gives what the manifest of a backup says; one that was opened can be read.
func (s *site) read(b *repo.Backup) (content, error) {
	m, packs, err := s.store.Open(s.t.Context(), b)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	all := make(content)
	if err := readAll(s.t.Context(), m, packs, all.add); err != nil {
		s.t.Errorf("the manifest was opened and cannot be read: %v", err)
	}
	return all, nil
}

// kept lists the files of the state directory.
func (s *site) kept() []string {
	s.t.Helper()
	var all []string
	err := filepath.WalkDir(filepath.Join(s.state, "chain"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = fs.ModeDir | 0o700
		} else {
			all = append(all, path)
		}
		if info.Mode() != want {
			s.t.Errorf("%s has the mode %s", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// A host that cannot open what it has stored makes one incremental after the
// other from what it keeps, and keeps only what the newest needs.
func TestRecipientsOnly(t *testing.T) {
	s := newSite(t)
	var b *repo.Backup
	var want content
	for n := range 6 {
		s.open(false)
		b, want = s.backup(n)
		newest, err := s.store.Newest()
		if err != nil || newest != b.Name {
			t.Fatalf("the newest is %q, %v", newest, err)
		}
	}
	got, err := s.read(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	// The first section is the full backup's, the second the last one's; no
	// other is needed.
	names, err := s.store.names()
	if diff := cmp.Diff([]repo.BackupName{name(0), name(5)}, names); diff != "" || err != nil {
		t.Fatal(diff, err)
	}
	s.kept()

	// Another host, or this one without its state directory.
	if err := os.RemoveAll(filepath.Join(s.state, "chain")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.read(b); errs.KindOf(err) != errs.Identity {
		t.Fatal(err)
	}
	s.open(true)
	if got, err = s.read(b); err != nil || !cmp.Equal(want, got) {
		t.Fatal(err, cmp.Diff(want, got))
	}
}

// Whatever is lost or damaged of what is kept is as if it were missing: without
// an identity the manifest cannot be opened, with one it comes from the
// repository.
func TestDamage(t *testing.T) {
	s := newSite(t)
	s.backup(0)
	b, want := s.backup(1)
	for _, path := range s.kept() {
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		flipped := func(at int) []byte {
			c := bytes.Clone(body)
			c[at] ^= 0x10
			return c
		}
		damages := map[string][]byte{"removed": nil, "empty": {}, "cut": body[:len(body)-1], "half": body[:len(body)/2]}
		for _, at := range []int{0, len(body) / 3, len(body) / 2, len(body) - 1} {
			damages[fmt.Sprintf("flipped at %d", at)] = flipped(at)
		}
		short := strings.TrimPrefix(path, filepath.Join(s.state, "chain", cluster.String())+"/")
		// Of the older backup only the first section is needed.
		older := strings.HasPrefix(short, string(name(0)))
		unused := older && !strings.Contains(short, "/pack-")
		for damage, to := range damages {
			t.Run(short+" "+damage, func(t *testing.T) {
				err := os.Remove(path)
				if to != nil {
					err = os.WriteFile(path, to, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
				s.open(false)
				got, err := s.read(b)
				switch {
				case errs.KindOf(err) == errs.Identity && !unused:
				case err != nil:
					t.Fatal(err)
				case filepath.Base(path) != backupFile && !unused && (!older || to == nil || len(to) == 0 || to[0] != body[0]):
					t.Fatal("the damage was not noticed")
				default:
					if diff := cmp.Diff(want, got); diff != "" {
						t.Fatal(diff)
					}
				}
				s.open(true)
				if got, err = s.read(b); err != nil || !cmp.Equal(want, got) {
					t.Fatal(err, cmp.Diff(want, got))
				}
			})
			if err := os.WriteFile(path, body, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What is damaged after a manifest was opened comes from the repository.
func TestDamageWhileOpen(t *testing.T) {
	s := newSite(t)
	s.backup(0)
	b, want := s.backup(1)
	s.open(true)
	m, packs, err := s.store.Open(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, path := range s.kept() {
		if !strings.Contains(path, "/pack-") {
			continue
		}
		if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := make(content)
	if err := readAll(t.Context(), m, packs, got.add); err != nil || !cmp.Equal(want, got) {
		t.Fatal(err, cmp.Diff(want, got))
	}
	if !strings.Contains(s.log.String(), "the kept copy of a manifest is damaged") {
		t.Fatal(s.log.String())
	}
}

// A copy of another backup of the same name, as a repository that was made anew
// may have it, does not count.
func TestOtherBackup(t *testing.T) {
	s := newSite(t)
	b, _ := s.backup(0)
	other := *b
	other.Self[0]++
	if _, _, err := s.store.openKept(t.Context(), &other); err == nil || !strings.Contains(err.Error(), "not the repository's") {
		t.Fatal(err)
	}
}

// Of a backup that does not end nothing is kept, and the last one stays.
func TestUnfinished(t *testing.T) {
	s := newSite(t)
	b, want := s.backup(0)
	before := s.kept()
	keep := s.store.Begin(name(1))
	if err := errors.Join(keep.Root([]byte("frame")), keep.Section(repo.FrameRef{Pack: 3, Offset: 7}, []byte("frame"))); err != nil {
		t.Fatal(err)
	}
	if newest, err := s.store.Newest(); err != nil || newest != b.Name {
		t.Fatalf("%q, %v", newest, err)
	}
	if err := keep.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, s.kept()); diff != "" {
		t.Fatal(diff)
	}
	if got, err := s.read(b); err != nil || !cmp.Equal(want, got) {
		t.Fatal(err)
	}
	if err := s.store.Forget(b.Name); err != nil {
		t.Fatal(err)
	}
	if newest, err := s.store.Newest(); err != nil || newest != "" {
		t.Fatalf("%q, %v", newest, err)
	}
}

// A disk that fails costs the copy, not the backup, and is told once.
func TestDisk(t *testing.T) {
	for _, broken := range []string{"chain", filepath.Join("chain", cluster.String(), string(name(0)), rootFile)} {
		s := newSite(t)
		path := filepath.Join(s.state, broken)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if broken == "chain" {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		} else if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		b, _, err := s.tryBackup(0)
		if b == nil {
			t.Fatal(err)
		}
		if _, err := s.repo.LoadBackup(t.Context(), cluster, b.Name); err != nil {
			t.Fatal(err)
		}
		if newest, err := s.store.Newest(); newest != "" {
			t.Fatal(newest, err)
		}
		if n := strings.Count(s.log.String(), "nothing of this backup is kept"); n != 1 {
			t.Fatalf("told %d times:\n%s", n, s.log.String())
		}
	}
}

// A backup that runs beside another keeps what it has written by then.
func TestCommitSparesRunning(t *testing.T) {
	s := newSite(t)
	other := s.store.Begin(beside)
	stale := s.store.Begin(name(7))
	if _, _, err := s.tryBackup(0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.store.path(beside, rootFile)); err != nil {
		t.Errorf("what the other backup has written: %v", err)
	}
	if _, err := os.Stat(s.store.path(name(7), rootFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a dead one has left is still there: %v", err)
	}
	if err := errors.Join(other.Close(), stale.Close()); err != nil {
		t.Fatal(err)
	}
}
