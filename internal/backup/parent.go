package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"agent/internal/delta"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
	"agent/internal/storage"
	"agent/internal/summary"
)

// Incremental says whether a backup builds on an earlier one, and on which.
type Incremental struct {
	Full      bool   // read everything, whatever there is
	Parent    string // name of the backup to build on; empty: the newest that fits
	Detect    string // delta's mode; empty: delta.Auto
	FullEvery time.Duration
	Most      int // incrementals behind a full backup
}

// base is the backup that this one builds on.
type base struct {
	*repo.Backup
	manifest *repo.Manifest
	packs    map[repo.PackID]repo.Pack
}

// chooseBase finds the backup to build on, if there is one. That there is none is
// noted and makes the backup full; that the one which was asked for does not do
// is an error.
func (b *run) chooseBase(ctx context.Context) (err error) {
	if b.history, err = b.readHistory(ctx); err != nil {
		return err
	}
	switch {
	case b.Incremental.Full:
		b.note("a full backup was asked for")
		return nil
	case b.Incremental.Most == 0 && b.Incremental.Parent == "":
		b.note("max_incrementals is 0")
		return nil
	}
	candidates, err := b.candidates(ctx)
	if err != nil {
		return err
	}
	for _, c := range candidates {
		reason, err := b.useBase(ctx, c)
		if err != nil {
			return err
		}
		if reason == "" {
			return nil
		}
		if b.Incremental.Parent != "" {
			return errs.New(errs.Usage, "Choose another parent (agent backup-list), or leave --parent out to have it chosen.",
				"backup %s cannot be the parent: %s", c.Name, reason)
		}
		b.note(fmt.Sprintf("backup %s cannot be the parent: %s", c.Name, reason))
	}
	if len(candidates) == 0 {
		b.note("there is no earlier backup of this cluster")
	}
	return nil
}

// note keeps why the backup is what it is, for the log and for who reads
// backup.json.
func (b *run) note(reason string) {
	b.notes = append(b.notes, reason)
	b.Log.Info("choosing the parent", "reason", reason)
}

// candidatesTried is how many earlier backups are looked at.
const candidatesTried = 3

// candidates are the backups that may be built on, the best first: the one that
// was asked for; the newest that this host has made and knows by heart; or the
// newest of all.
func (b *run) candidates(ctx context.Context) ([]*repo.Backup, error) {
	if b.Incremental.Parent != "" {
		name, err := repo.ParseBackupName(b.Incremental.Parent)
		if err != nil {
			return nil, errs.Wrap(err, errs.Usage, "See what there is with: agent backup-list", "choose the parent")
		}
		parent, err := b.repo.LoadBackup(ctx, b.cluster(), name)
		if err != nil {
			return nil, err
		}
		return []*repo.Backup{parent}, nil
	}
	known, err := b.chain.Newest()
	if err != nil {
		b.Log.Warn("what the state directory knows of earlier backups cannot be read", "error", err.Error())
	}
	if known != "" {
		parent, err := b.repo.LoadBackup(ctx, b.cluster(), known)
		switch {
		case err == nil:
			if b.unfit(parent) == "" {
				return []*repo.Backup{parent}, nil
			}
		case errs.KindOf(err) != errs.NotFound && errs.KindOf(err) != errs.Damaged:
			return nil, err
		}
	}
	all, err := b.repo.Backups(ctx, b.cluster())
	if errs.KindOf(err) == errs.Damaged {
		b.Log.Warn("some backups cannot be read and are left out", "error", err.Error())
		err = nil
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(x, y *repo.Backup) int { return newerFirst(b.history, x, y) })
	// Those that do not fit come last: they say why none does.
	slices.SortStableFunc(all, func(x, y *repo.Backup) int { return boolOrder(b.unfit(x) != "") - boolOrder(b.unfit(y) != "") })
	return all[:min(len(all), candidatesTried)], nil
}

func boolOrder(later bool) int {
	if later {
		return 1
	}
	return 0
}

// newerFirst orders backups by how far they go on the server's timeline.
func newerFirst(history postgres.History, x, y *repo.Backup) int {
	if on := boolOrder(!history.Contains(x.Timeline)) - boolOrder(!history.Contains(y.Timeline)); on != 0 {
		return on
	}
	return repo.CompareEnds(y, x)
}

// unfit says why a backup cannot be built on, as far as is known before this one
// has begun.
func (b *run) unfit(parent *repo.Backup) string { return delta.Unfit(parent, b.state(b.started)) }

// state is what the parent must fit; start is 0 while it is not known.
func (b *run) state(start postgres.LSN) delta.State {
	return delta.State{
		Cluster: b.cluster(), Major: b.info.Major, CatalogVersion: b.control.CatalogVersion,
		BlockSize: int64(b.control.BlockSize), SegmentSize: b.control.WALSegmentSize,
		Checksums: b.control.DataChecksums(), Timeline: b.info.Timeline, History: b.history, Start: start,
	}
}

// useBase takes a backup as the base; reason says why it cannot be.
func (b *run) useBase(ctx context.Context, parent *repo.Backup) (reason string, err error) {
	if reason := b.unfit(parent); reason != "" {
		return reason, nil
	}
	if b.Incremental.Parent == "" {
		if parent.Depth >= b.Incremental.Most {
			return fmt.Sprintf("it is incremental number %d of its chain, and max_incrementals is %d", parent.Depth, b.Incremental.Most), nil
		}
		if age := b.Now().Sub(parent.Chain()); age >= b.Incremental.FullEvery {
			return fmt.Sprintf("the full backup of its chain began %s ago, and full_every is %s", age.Round(time.Minute), b.Incremental.FullEvery), nil
		}
	}
	if place, err := b.repo.Incomplete(ctx, parent); err != nil || place != "" {
		return fmt.Sprintf("repository %s has not got it (agent repo sync brings it there)", place), err
	}
	manifest, packs, err := b.chain.Open(ctx, parent)
	if kind := errs.KindOf(err); kind == errs.Storage || kind == errs.Interrupted || errors.Is(err, storage.ErrUnavailable) || ctx.Err() != nil {
		return "", err
	}
	if err != nil {
		return fmt.Sprintf("its manifest cannot be read: %v", err), nil
	}
	b.base = &base{Backup: parent, manifest: manifest, packs: packs}
	return "", nil
}

// closeBase frees what the base and an interrupted backup hold.
func (b *run) closeBase() {
	if b.base != nil {
		b.base.manifest.Close()
	}
	if b.resumed != nil {
		b.resumed.Manifest.Close()
	}
}

// readHistory is the line of descent of the server's timeline.
func (b *run) readHistory(ctx context.Context) (postgres.History, error) {
	tli := b.info.Timeline
	if tli == 1 {
		return postgres.ParseHistory(tli, nil)
	}
	body, err := os.ReadFile(filepath.Join(b.dataDir, "pg_wal", tli.String()+".history"))
	if err == nil {
		return postgres.ParseHistory(tli, body)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, readError(err)
	}
	all, _, err := b.repo.Histories(ctx, b.cluster())
	if err != nil {
		return nil, err
	}
	history, ok := all[tli]
	if !ok {
		b.note(fmt.Sprintf("neither pg_wal nor the repository has the history of timeline %d", tli))
		return postgres.History{{Timeline: tli}}, nil
	}
	return history, nil
}

// layers begins to read the base beside the walk, now that it is known where
// this backup starts; with nothing that tells what has changed the backup is
// full.
func (b *run) layers(ctx context.Context, start postgres.LSN) ([]*layer, error) {
	layers, err := b.baseLayer(ctx, start)
	if err != nil {
		return nil, err
	}
	resumed, err := b.resumedLayer(ctx, start)
	if err != nil {
		closeLayers(layers)
		return nil, err
	}
	return append(resumed, layers...), nil
}

func (b *run) baseLayer(ctx context.Context, start postgres.LSN) ([]*layer, error) {
	if b.base == nil {
		return nil, nil
	}
	if err := b.awaitBefore(ctx, start); err != nil {
		return nil, err
	}
	changes, refused, err := b.detect(ctx, b.base.Backup, b.base.manifest, start)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		if b.Incremental.Parent != "" {
			return nil, errs.New(errs.Usage, "Leave --parent out, to have it chosen, or take a full backup with --full.",
				"what has changed since backup %s cannot be told: %s", b.base.Name, err)
		}
		b.note(fmt.Sprintf("what has changed since backup %s cannot be told: %s", b.base.Name, err))
		b.base.manifest.Close()
		b.base = nil
		return nil, nil
	}
	for _, reason := range refused {
		b.note(reason)
	}
	d := b.backup
	d.Type, d.Parent, d.Depth, d.Detector = repo.TypeIncremental, b.base.Name, b.base.Depth+1, string(changes.Method())
	d.ChainStart, d.Full = b.base.Chain().UTC(), b.base.Full
	if d.Full == "" {
		d.Full = b.base.Name
	}
	b.Log.Info("backup is incremental", "backup", string(d.Name), "parent", string(d.Parent), "detector", d.Detector)
	reader, err := b.base.manifest.Read(b.base.packs)
	if err != nil {
		return nil, err
	}
	return []*layer{{manifest: reader, changes: changes}}, nil
}

// detect finds out what has changed since an earlier backup.
func (b *run) detect(ctx context.Context, since *repo.Backup, manifest *repo.Manifest, start postgres.LSN) (*delta.Changes, []string, error) {
	if reason := delta.Unfit(since, b.state(start)); reason != "" {
		return nil, nil, errors.New(reason)
	}
	d := delta.Detector{
		Source:   delta.Source{Repo: b.repo, Local: summary.NewLocal(filepath.Join(b.StateDir, "summary")), DataDir: b.dataDir},
		Geometry: delta.Geometry{BlockSize: int64(b.control.BlockSize), RelSegBlocks: b.control.RelSegBlocks},
		Server:   b.server,
		Hints:    b.hints(since),
		Archives: b.info.ArchiveMode == "always" || b.info.ArchiveMode == "on" && !b.info.InRecovery,
		Databases: func(ctx context.Context) (delta.Databases, error) {
			return newDatabases(ctx, manifest, b.dataDir)
		},
	}
	return d.Detect(ctx, b.Incremental.Detect, delta.Range{
		Cluster: b.cluster(), Major: b.info.Major, SegmentSize: b.control.WALSegmentSize,
		From: since.StartLSN, ParentStop: since.StopLSN, To: start, History: b.history,
	})
}

// hints says why hints may have changed without an LSN since an earlier backup
// began. Both settings that put them into WAL change only while the server is down.
func (b *run) hints(since *repo.Backup) string {
	started := since.Started
	if since.StateID != b.Host.State {
		started = started.Add(-clockMargin)
	}
	switch {
	case !b.info.DataChecksums && !b.info.WALLogHints:
		return "neither page checksums nor wal_log_hints is on, so that VACUUM changes pages without an LSN"
	case !b.info.Started.Before(started):
		return fmt.Sprintf("the server was started since (%s): whether page checksums or wal_log_hints were always on is not known", b.info.Started.UTC().Format(time.RFC3339))
	}
	return ""
}

// clockMargin is how far the clocks of two hosts may differ.
const clockMargin = 10 * time.Minute

// newDatabases are those whose PG_VERSION is not the file that an earlier backup
// has seen.
func newDatabases(ctx context.Context, manifest *repo.Manifest, dataDir string) (delta.Databases, error) {
	var d delta.Databases
	m, err := manifest.Read(nil)
	if err != nil {
		return d, err
	}
	defer m.Close()
	for {
		e, _, err := m.Next(ctx)
		if errors.Is(err, io.EOF) {
			return d, nil
		}
		if err != nil {
			return d, err
		}
		if e.Kind != repo.EntryFile || path.Base(e.Path) != "PG_VERSION" {
			continue
		}
		info, err := os.Stat(filepath.Join(dataDir, filepath.FromSlash(e.Path)))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return d, readError(err)
		}
		if err != nil || info.ModTime().UnixMicro() != e.ModTime.UnixMicro() {
			d.New(e.Path)
		}
	}
}
