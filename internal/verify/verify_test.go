package verify

import (
	"log/slog"
	"testing"
	"time"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage/fs"
)

const (
	testCluster repo.ClusterID  = 7_321_654_987_321_654_987
	testName    repo.BackupName = "20261120T101530Z-k3v7qa"
)

// described is a repository of one place with the backup.json of a backup, and
// nothing else of it.
func described(t *testing.T) (*repo.Repository, Options) {
	t.Helper()
	b, err := fs.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Cluster: testCluster, Depth: Stored, Concurrency: 2, MaxAge: time.Hour, StateDir: t.TempDir(),
		Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
	r := repo.New([]repo.Place{{Name: "main", Bucket: b, Required: true}}, repo.Options{Log: o.Log, Now: o.Now, Version: "test", SpoolDir: o.StateDir})
	t.Cleanup(func() { r.Close() })
	if _, err := r.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	const size postgres.SegmentSize = 16 << 20
	if err := r.EnsureCluster(t.Context(), repo.Cluster{ID: testCluster, SegmentSize: size, BlockSize: 8192, RelSegBlocks: 131072}); err != nil {
		t.Fatal(err)
	}
	segment := postgres.SegmentOf(1, 0x3000028, size).Name(size)
	_, err = r.StoreBackup(t.Context(), &repo.Backup{
		Format: repo.Format, Name: testName, Type: repo.TypeFull, Cluster: testCluster, StartLSN: 0x3000028, StopLSN: 0x3000100, Timeline: 1,
		StartSegment: segment, StopSegment: segment, SegmentSize: size, BlockSize: 8192,
		Packs: repo.ObjectDigest{Size: 10}, Manifest: repo.ObjectDigest{Size: 10},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r, o
}

// What is missing of a backup that is being deleted is no damage, and is not
// repaired; of one that is not, it is.
func TestDeleted(t *testing.T) {
	r, o := described(t)
	res, err := Run(t.Context(), r, o)
	if err != nil {
		t.Fatal(err)
	}
	// The list, the manifest and the WAL.
	if len(res.Findings) != 3 || res.Status() != string(Missing) || res.Backups[0].Status != StatusLost || errs.KindOf(res.Err()) != errs.Damaged {
		t.Errorf("of a backup with nothing but its backup.json is said: %+v", res)
	}
	grave, err := r.Entomb(t.Context(), testCluster, repo.Tomb{Backups: []repo.BackupName{testName}})
	if err != nil {
		t.Fatal(err)
	}
	res, err = Run(t.Context(), r, o)
	if err != nil {
		t.Fatal(err)
	}
	if res.Backups[0].Status != StatusDeleted || res.Backups[0].Marked || res.Status() != "ok" || len(res.Lost) != 0 {
		t.Errorf("while it is being deleted: %+v", res)
	}
	o.Repair = true
	if _, err := Run(t.Context(), r, o); errs.KindOf(err) != errs.Locked {
		t.Errorf("a repair of what is being deleted: %v", err)
	}
	if err := grave.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if res, err = Run(t.Context(), r, o); err != nil || res.Repaired() != 0 || res.Findings[0].NotRepaired != nil {
		t.Errorf("with no copy anywhere: %+v, %v", res, err)
	}
}

// The worst of what was found gives the status and the kind of the error, and what
// was repaired, or is expected of a best-effort place, gives none.
func TestStatus(t *testing.T) {
	for what, c := range map[string]struct {
		findings []Finding
		status   string
		kind     errs.Kind
	}{
		"nothing":                        {nil, "ok", errs.Other},
		"told alone":                     {[]Finding{{Kind: Behind, Repository: "far"}, {Kind: BadPages}, {Kind: Dropped}, {Kind: Unfinished}}, "ok", errs.Other},
		"a best-effort place is away":    {[]Finding{{Kind: Unreachable, Repository: "far"}}, "ok", errs.Other},
		"a required place is away":       {[]Finding{{Kind: Gap}, {Kind: Unreachable, Repository: "near"}}, "unreachable", errs.Storage},
		"a gap":                          {[]Finding{{Kind: Gap}, {Kind: Behind}}, "gap", errs.Gap},
		"missing before a place is away": {[]Finding{{Kind: Unreachable, Repository: "near"}, {Kind: Missing}}, "missing", errs.Damaged},
		"damage before all":              {[]Finding{{Kind: Gap}, {Kind: Missing}, {Kind: Damaged, Repository: "far"}}, "damaged", errs.Damaged},
		"repaired":                       {[]Finding{{Kind: Damaged, Repaired: "far"}, {Kind: Gap, Repaired: "far"}}, "ok", errs.Other},
		"repaired in part":               {[]Finding{{Kind: Damaged, Repaired: "far"}, {Kind: Gap}}, "gap", errs.Gap},
	} {
		r := &Result{Findings: c.findings, required: map[string]bool{"near": true, "far": false}}
		if got, kind := r.Status(), errs.KindOf(r.Err()); got != c.status || kind != c.kind || (r.Err() == nil) != (c.status == "ok") {
			t.Errorf("%s: %q, %v", what, got, r.Err())
		}
	}
}
