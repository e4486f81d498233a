package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/errs"
	"agent/internal/host"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// Options are what a backup is restored with.
type Options struct {
	Cluster        repo.ClusterID
	Dest           string
	Name           string // of the backup; empty or LATEST: chosen by the target
	Target         Target
	Tablespaces    map[string]string // old location to new
	RestoreCommand string            // as it stands in the settings
	TakeOver       bool              // go on archiving as the recorded server
	Concurrency    int
	Host           host.Identity
	Log            *slog.Logger
	Now            func() time.Time
	// Progress is called about every second from one goroutine; nil: never.
	Progress func(Progress)
}

// Progress is how far a restore is.
type Progress struct {
	Written, Total int64 // bytes of files
	Elapsed        time.Duration
}

// Result is what was restored.
type Result struct {
	Choice
	Files, Bytes int64
	Elapsed      time.Duration
	ArchivingOff bool // archive_mode=off was written
	ConfigGone   bool // the directory has no postgresql.conf
}

// run is one restore on its way.
type run struct {
	Options
	repo   *repo.Repository
	choice Choice
	dest   *destination
	verify *pgManifest
	meter  meter
	powers powers
}

// Run restores a backup into a directory that is empty or does not exist.
// global/pg_control, without which no server starts, is placed when everything
// else is there and durable.
func Run(ctx context.Context, r *repo.Repository, o Options) (*Result, error) {
	began := o.Now()
	if err := r.CheckAny(ctx); err != nil {
		return nil, err
	}
	x := &run{Options: o, repo: r}
	if err := x.choose(ctx); err != nil {
		return nil, err
	}
	b := x.choice.Backup
	if err := x.reachable(ctx); err != nil {
		return nil, err
	}
	stop := x.report(began)
	defer stop()
	packs, manifest, err := lists(ctx, r, b)
	if err != nil {
		return nil, err
	}
	defer manifest.Close()
	if x.dest, err = x.prepare(ctx, manifest); err != nil {
		return nil, err
	}
	err = x.restore(ctx, manifest, packs)
	if err = errors.Join(err, x.dest.release()); err != nil {
		return nil, fmt.Errorf("restore backup %s: %w", b.Name, err)
	}
	res := &Result{
		Choice: x.choice, Files: b.Files, Bytes: b.DataBytes, Elapsed: o.Now().Sub(began),
		ArchivingOff: x.archivingOff(),
	}
	_, err = os.Stat(filepath.Join(x.dest.root, "postgresql.conf"))
	res.ConfigGone = errors.Is(err, os.ErrNotExist)
	return res, nil
}

// reachable refuses a recovery that would run into WAL which a delete has taken.
func (x *run) reachable(ctx context.Context) error {
	b := x.choice.Backup
	if x.Target.Kind == TargetImmediate {
		return nil
	}
	whole, err := x.repo.Horizons(ctx, b.Cluster, b.SegmentSize)
	if err != nil || b.StartLSN.Segment(b.SegmentSize) >= whole[b.Timeline] {
		return err
	}
	return errs.New(errs.Gap,
		"Restore that backup as it is with --target-immediate, or choose a moment that is covered (agent wal-show, agent backup-list).",
		"backup %s was kept for itself, and the WAL behind it was deleted (agent delete): it recovers to its own end, %s (%s), and no further", b.Name, b.StopLSN, b.Stopped.UTC().Format(time.RFC3339))
}

// lists brings the list of packs and the manifest's root, side by side: each is
// a round trip.
func lists(ctx context.Context, r *repo.Repository, b *repo.Backup) (packs map[repo.PackID]repo.Pack, manifest *repo.Manifest, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		packs, err = r.LoadPacks(ctx, b)
		return err
	})
	g.Go(func() (err error) {
		manifest, err = r.OpenManifest(ctx, b)
		return err
	})
	if err = g.Wait(); err != nil && manifest != nil {
		err = errors.Join(err, manifest.Close())
	}
	return packs, manifest, err
}

// backups are all there are, or the one that is named.
func (x *run) backups(ctx context.Context) ([]*repo.Backup, error) {
	if x.Name == "" || x.Name == "LATEST" {
		return x.repo.BackupsToRead(ctx, x.Cluster)
	}
	name, err := repo.ParseBackupName(x.Name)
	if err != nil {
		return nil, errs.Wrap(err, errs.Usage, "See what there is with: agent backup-list", "choose the backup")
	}
	b, err := x.repo.LoadHiddenBackup(ctx, x.Cluster, name)
	if err != nil {
		return nil, err
	}
	return []*repo.Backup{b}, nil
}

// choose reads what there is and picks the backup. A backup that is named is
// read alone.
func (x *run) choose(ctx context.Context) error {
	var histories map[postgres.Timeline]postgres.History
	var unreadable map[postgres.Timeline]error
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		histories, unreadable, err = x.repo.Histories(gctx, x.Cluster)
		return err
	})
	backups, err := x.backups(gctx)
	if herr := g.Wait(); herr != nil {
		return herr
	}
	for t, err := range unreadable {
		x.Log.Warn("a timeline history cannot be read", "timeline", uint32(t), "error", err.Error())
	}
	if errs.KindOf(err) == errs.Damaged && len(backups) > 0 {
		// Any other backup with the WAL behind it leads to the same place.
		x.Log.Warn("some backups cannot be read and are left out", "error", err.Error())
		err = nil
	}
	if err != nil {
		return err
	}
	if x.choice, err = Choose(backups, histories, unreadable, x.Target, x.Name); err != nil {
		return err
	}
	b := x.choice.Backup
	x.Log.Info("chose backup", "backup", string(b.Name), "ended", b.Stopped.Format(time.RFC3339),
		"stop_lsn", b.StopLSN.String(), "timeline", uint32(x.choice.Timeline), "target", x.Target.String())
	for _, a := range x.choice.Aside {
		x.Log.Warn("a newer backup does not lead to this timeline; to follow it use --target-timeline",
			"backup", string(a.Name), "backup_timeline", uint32(a.Timeline), "timeline", uint32(x.choice.Timeline))
	}
	if b.BadPages > 0 {
		x.Log.Warn("the backup was marked for pages with wrong checksums", "pages", b.BadPages, "sample", b.BadPageSample)
	}
	return nil
}

// prepare reads the root of the manifest for what must be known before the
// first byte is written: tablespaces and sizes.
func (x *run) prepare(ctx context.Context, manifest *repo.Manifest) (*destination, error) {
	m, err := manifest.Read(nil)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	d := newDestination(x.Dest, m.Header.Mode, x.Tablespaces)
	for {
		e, _, err := m.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		d.expect(e)
	}
	if err := d.check(ctx, x.choice.Backup.User); err != nil {
		return nil, err
	}
	x.meter.total.Store(m.Totals().Bytes)
	return d, nil
}

// restore is the restore proper.
func (x *run) restore(ctx context.Context, manifest *repo.Manifest, packs map[repo.PackID]repo.Pack) error {
	if err := x.dest.begin(x.choice.Backup, x.Now()); err != nil {
		return err
	}
	m, err := manifest.Read(packs)
	if err != nil {
		return err
	}
	defer m.Close()
	if x.verify, err = newPGManifest(filepath.Join(x.dest.root, "backup_manifest"), x.dest.fileMode()); err != nil {
		return err
	}
	defer x.verify.abandon()
	control, err := x.place(ctx, m, packs)
	if err != nil {
		return err
	}
	if err := x.dest.required(postgres.RequiredDirs()); err != nil {
		return err
	}
	if err := x.settings(); err != nil {
		return err
	}
	b := x.choice.Backup
	if err := x.verify.finish(b.Timeline, b.StartLSN, b.StopLSN); err != nil {
		return err
	}
	return x.dest.finish(control)
}

// archivingOff: a copy that is not the recorded server in its own place must
// not archive into the production repository under the same names. Nor must
// that of a standby, which would begin a timeline beside its primary's.
func (x *run) archivingOff() bool {
	b := x.choice.Backup
	recorded := host.Identity{Name: b.Host, Machine: b.Machine, State: b.StateID}
	inPlace := recorded.Same(x.Host) && b.Directory == x.dest.root && !b.Standby
	return !inPlace && !x.TakeOver
}
