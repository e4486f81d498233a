// Package compact makes a backup that stands on packs of its own out of one that
// borrows from others, from the repository alone. What is stored stays as it is
// where all of a frame is still needed; of the other frames the rest is put
// into new ones.
package compact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/host"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// Options are what a backup is compacted with.
type Options struct {
	Backup      *repo.Backup // the one that borrows
	Concurrency int
	Codec       compress.Setting // of the new frames
	StateDir    string
	Host        host.Identity
	Log         *slog.Logger
	Now         func() time.Time
	Version     string
	// Progress is called about every second from one goroutine; nil: never.
	Progress func(Progress)
}

// Progress is how far a compaction is.
type Progress struct {
	Done, Total int64 // bytes of files
	Elapsed     time.Duration
}

// Result is the new backup and what it took.
type Result struct {
	*repo.Backup
	Nothing  bool  // the backup borrowed nothing: it is the one that there was
	Copied   int64 // raw bytes of frames that were stored as they were
	Reframed int64 // raw bytes that were compressed again
	Elapsed  time.Duration
	// Incomplete names the best-effort repositories that have not got it yet.
	Incomplete []string
}

// run is one compaction on its way.
type run struct {
	Options
	repo   *repo.Repository
	packs  map[repo.PackID]repo.Pack // the source's
	backup *repo.Backup              // the new one
	lease  *repo.Lease
	meter  meter
}

type meter struct{ done, copied, reframed atomic.Int64 }

// Run makes the new backup. It has the positions, times, timeline and WAL of the
// old one, and restores to the same bytes. Nothing is deleted. When Run
// returns without error the new backup is durable; when it fails there is none.
func Run(ctx context.Context, r *repo.Repository, o Options) (*Result, error) {
	began := o.Now()
	if err := r.Check(ctx); err != nil {
		return nil, err
	}
	c := &run{Options: o, repo: r}
	var err error
	if c.packs, err = r.LoadPacks(ctx, o.Backup); err != nil {
		return nil, err
	}
	if !borrows(c.packs) {
		return &Result{Backup: o.Backup, Nothing: true, Elapsed: o.Now().Sub(began)}, nil
	}
	if err := c.walIsThere(ctx); err != nil {
		return nil, err
	}
	if err := c.describe(); err != nil {
		return nil, err
	}
	incomplete, err := c.claimed(ctx, began)
	if err != nil {
		return nil, fmt.Errorf("compact backup %s: %w", o.Backup.Name, err)
	}
	return &Result{
		Backup: c.backup, Copied: c.meter.copied.Load(), Reframed: c.meter.reframed.Load(),
		Elapsed: o.Now().Sub(began), Incomplete: incomplete,
	}, nil
}

func borrows(packs map[repo.PackID]repo.Pack) bool {
	for _, p := range packs {
		if p.Lender != "" {
			return true
		}
	}
	return false
}

// walIsThere refuses to make a backup that cannot be made consistent.
func (c *run) walIsThere(ctx context.Context) error {
	b := c.Backup
	first, err := postgres.ParseSegment(b.StartSegment, b.SegmentSize)
	if err != nil {
		return fmt.Errorf("read the first WAL segment of backup %s: %w", b.Name, err)
	}
	last, err := postgres.ParseSegment(b.StopSegment, b.SegmentSize)
	if err != nil {
		return fmt.Errorf("read the last WAL segment of backup %s: %w", b.Name, err)
	}
	missing, err := c.repo.MissingWAL(ctx, b.Cluster, first, last, b.SegmentSize)
	if err != nil {
		return err
	}
	if missing != "" {
		return errs.New(errs.Damaged, "Bring it back from another copy of the repository, or compact another backup (agent backup-list).",
			"backup %s needs the WAL segment %s, which is not in %s", b.Name, missing, c.repo)
	}
	return nil
}

// describe names the new backup; it is what the old one is, but for where its
// bytes lie.
func (c *run) describe() error {
	name, err := repo.NewBackupName(c.Now())
	if err != nil {
		return err
	}
	d := *c.Backup
	d.Name, d.Type, d.CompactedFrom = name, repo.TypeFull, c.Backup.Name
	d.Parent, d.Full, d.ChainStart, d.Depth, d.Resumed = "", "", time.Time{}, 0, ""
	d.Detector, d.Notes, d.ReadBytes, d.InheritedBytes = "", nil, 0, 0
	d.Sealed, d.Agent, d.Signature = c.repo.Sealed(), c.Version, ""
	c.backup = &d
	return nil
}

// claimed does the work under a claim: so that what it reads is not taken away.
func (c *run) claimed(ctx context.Context, began time.Time) (incomplete []string, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.lease, err = c.repo.Claim(ctx, c.backup.Cluster, repo.Claim{
		Backup: c.backup.Name, Compacts: c.Backup.Name, Host: c.Host.Name, State: c.StateDir, StateID: c.Host.State, PID: os.Getpid(), Lenders: c.lenders(),
	}, repo.ClaimOptions{Concurrent: true})
	if err != nil {
		return nil, err
	}
	defer c.release(ctx)
	defer c.lease.Hold(ctx, cancel)()
	defer c.report(began)()
	doomed, _, err := c.repo.Doomed(ctx, c.backup.Cluster, c.lenders())
	if err != nil {
		return nil, err
	}
	if doomed != "" {
		return nil, errs.New(errs.Locked, "Run it again when the delete has ended, if the backup is still there (agent backup-list).", "packs of backup %s, which are needed, are being deleted", doomed)
	}
	incomplete, err = c.work(ctx)
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		err = cause
	}
	return incomplete, err
}

// lenders are the backups whose packs are read.
func (c *run) lenders() []repo.BackupName {
	names := []repo.BackupName{c.Backup.Name}
	for _, p := range c.packs {
		if p.Lender != "" {
			names = append(names, p.Lender)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// release gives the claim back. Credentials that cannot delete leave it to
// expire.
func (c *run) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := c.lease.Release(ctx); err != nil {
		c.Log.Warn("claim is left to expire", "error", err.Error())
	}
}

func (c *run) work(ctx context.Context) (incomplete []string, err error) {
	old, err := c.repo.OpenManifest(ctx, c.Backup)
	if err != nil {
		return nil, err
	}
	defer old.Close()
	reader, err := old.Read(c.packs)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	uploads, uctx := errgroup.WithContext(ctx)
	set := c.repo.NewPackSet(uctx, uploads, c.backup.Cluster, c.backup.Name, min(max(c.Concurrency, 2), 4))
	manifest, err := c.repo.NewManifestWriter(set, repo.ManifestHeader{
		Backup: c.backup.Name, BlockSize: reader.Header.BlockSize, Mode: reader.Header.Mode,
	}, nil)
	if err != nil {
		return nil, err
	}
	data := set.Writer(repo.PackData)
	err = c.copyAll(uctx, reader, data, manifest)
	if err == nil {
		err = data.Close()
	}
	var totals repo.ManifestTotals
	if err == nil {
		totals, err = manifest.Finish(uctx)
	}
	// The first failed upload cancels uctx: it, not the cancellation, is the reason.
	if uerr := uploads.Wait(); uerr != nil {
		err = uerr
	}
	if err == nil && (totals.Files != c.Backup.Files || totals.Bytes != c.Backup.DataBytes) {
		err = fmt.Errorf("%d files of %d bytes were copied, but the backup has %d of %d", totals.Files, totals.Bytes, c.Backup.Files, c.Backup.DataBytes)
	}
	if err == nil {
		incomplete, err = c.publish(ctx, set, manifest)
	}
	return incomplete, errors.Join(err, manifest.Close())
}

// copyAll goes through the old manifest in batches, within which each pack is
// read once.
func (c *run) copyAll(ctx context.Context, reader *repo.ManifestReader, data *repo.Writer, manifest *repo.ManifestWriter) error {
	b := newBatch()
	for {
		e, parts, err := reader.Next(ctx)
		ended := errors.Is(err, io.EOF)
		if err != nil && !ended {
			return err
		}
		if !ended {
			b.add(e, parts)
		}
		if !ended && b.pieces < batchPieces {
			continue
		}
		packs, err := c.move(ctx, b, data)
		if err != nil {
			return err
		}
		for _, f := range b.files {
			if err := manifest.Add(ctx, f.Entry, f.parts(packs)); err != nil {
				return err
			}
		}
		if ended {
			return nil
		}
		b = newBatch()
	}
}

// publish makes the backup exist: lists, then backup.json.
func (c *run) publish(ctx context.Context, set *repo.PackSet, manifest *repo.ManifestWriter) (incomplete []string, err error) {
	packs, err := set.Packs()
	if err != nil {
		return nil, err
	}
	// Nothing is borrowed: of no list, so that a mistake would show.
	if _, err := manifest.Borrowed(nil); err != nil {
		return nil, err
	}
	d := c.backup
	d.PackCount, d.StoredBytes = int64(len(packs)), set.StoredSize()
	list, err := c.repo.EncodePacks(packs)
	if err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		d.Manifest, err = manifest.Store(gctx)
		return err
	})
	g.Go(func() (err error) {
		d.Packs, err = c.repo.StorePacks(gctx, d.Cluster, d.Name, list)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return c.repo.StoreBackup(ctx, d, nil)
}

// report calls Progress about once a second until the returned function is.
func (c *run) report(began time.Time) (stop func()) {
	if c.Progress == nil {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.Progress(Progress{Done: c.meter.done.Load(), Total: c.Backup.DataBytes, Elapsed: c.Now().Sub(began)})
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}
