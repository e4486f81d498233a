package backup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"agent/internal/chain"
	"agent/internal/compress"
	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// stop reads pg_control, the last file, ends backup mode and adds the files
// that a restore places last. On a standby pg_control says where the pages that
// were read before it are consistent (its minRecoveryPoint).
func (b *run) stop(ctx context.Context, start postgres.LSN, data *repo.Writer, manifest *repo.ManifestWriter) error {
	_, raw, err := postgres.ReadControl(ctx, b.dataDir)
	if err != nil {
		return err
	}
	stopped, err := b.server.StopBackup(ctx)
	if err != nil {
		return b.stopFailed(ctx, err)
	}
	label, err := postgres.ParseBackupLabel(stopped.Label)
	if err != nil {
		return fmt.Errorf("read the server's backup label: %w", err)
	}
	if label.Start != start {
		return fmt.Errorf("the server's backup label starts at %s, not at %s", label.Start, start)
	}
	after, err := b.server.Info(ctx)
	if err != nil {
		return err
	}
	if err := b.unchanged(after, label); err != nil {
		return err
	}
	if b.backup.NextXID, err = b.server.NextXID(ctx); err != nil {
		return err
	}
	spaces, err := postgres.ParseTablespaceMap(stopped.TablespaceMap)
	if err != nil {
		return fmt.Errorf("read the server's tablespace map: %w", err)
	}
	b.backup.Tablespaces = len(spaces)
	b.describe(label, stopped.LSN)
	return b.finals(ctx, data, manifest, stopped, raw)
}

func (b *run) describe(label postgres.BackupLabel, stop postgres.LSN) {
	d := b.backup
	d.StartLSN, d.StopLSN, d.Timeline = label.Start, stop, label.StartTimeline
	first, last := b.walRange()
	d.StartSegment, d.StopSegment = first.Name(d.SegmentSize), last.Name(d.SegmentSize)
	d.Stopped = b.Now().UTC().Truncate(time.Millisecond)
}

// walRange is the WAL without which the backup cannot be made consistent.
func (b *run) walRange() (first, last postgres.Segment) {
	d := b.backup
	first = postgres.SegmentOf(d.Timeline, d.StartLSN, d.SegmentSize)
	last = postgres.Segment{Timeline: d.Timeline, Number: d.StopLSN.LastSegment(d.SegmentSize)}
	return first, last
}

// finals adds backup_label, tablespace_map and pg_control, in this order.
func (b *run) finals(ctx context.Context, data *repo.Writer, manifest *repo.ManifestWriter, stopped postgres.StopResult, control []byte) error {
	info, err := os.Stat(filepath.Join(b.dataDir, filepath.FromSlash(postgres.ControlPath)))
	if err != nil {
		return readError(err)
	}
	enc, err := compress.NewEncoder(b.Codec)
	if err != nil {
		return fmt.Errorf("make encoder: %w", err)
	}
	add := func(path string, body []byte) error {
		e := repo.Entry{
			Kind: repo.EntryFile, Path: path, Mode: uint32(info.Mode().Perm()),
			ModTime: b.backup.Stopped, Size: int64(len(body)), Final: true,
		}
		var runs []repo.Run
		var packs []repo.PackFrames
		for len(body) > 0 {
			raw := body[:min(len(body), compress.MaxFrame)]
			body = body[len(raw):]
			frame, err := enc.AppendFrame(nil, raw)
			if err != nil {
				return fmt.Errorf("compress %s: %w", path, err)
			}
			ref, err := data.Append(ctx, frame, int64(len(raw)))
			if err != nil {
				return err
			}
			id := repo.PackID{Backup: b.backup.Name, Number: ref.Pack}
			if n := len(packs); n == 0 || packs[n-1].PackID != id {
				packs = append(packs, repo.PackFrames{PackID: id})
			}
			last := &packs[len(packs)-1]
			last.Frames = append(last.Frames, ref.Frame())
			runs = append(runs, repo.Run{Length: int64(len(raw)), Pack: int32(len(packs)), Raw: ref.RawOffset})
		}
		return manifest.Add(ctx, e, []repo.FilePart{{Part: repo.Part{Runs: runs}, Section: &repo.Section{Packs: packs}, Index: -1}})
	}
	if err := add("backup_label", stopped.Label); err != nil {
		return err
	}
	if len(stopped.TablespaceMap) > 0 {
		if err := add("tablespace_map", stopped.TablespaceMap); err != nil {
			return err
		}
	}
	return add(postgres.ControlPath, control)
}

// closePacks hands the last packs to the uploads.
func (b *run) closePacks(ctx context.Context, data *repo.Writer, manifest *repo.ManifestWriter) error {
	if err := data.Close(); err != nil {
		return err
	}
	totals, err := manifest.Finish(ctx)
	b.backup.Files, b.backup.DataBytes = totals.Files, totals.Bytes
	return err
}

// publish makes the backup exist: lists, then the WAL it needs, then
// backup.json.
func (b *run) publish(ctx context.Context, set *repo.PackSet, manifest *repo.ManifestWriter, kept *chain.Copy) error {
	d := b.backup
	packs, err := set.Packs()
	if err != nil {
		return err
	}
	d.PackCount, d.StoredBytes = int64(len(packs)), set.StoredSize()
	d.ReadBytes, d.InheritedBytes, d.Notes = b.meter.read.Load(), b.meter.inherited.Load(), shortNotes(b.notes)
	borrowed, err := manifest.Borrowed(b.lent())
	if err != nil {
		return err
	}
	list, err := b.repo.EncodePacks(append(packs, borrowed...))
	if err != nil {
		return err
	}
	d.BadPages, d.BadPageSample = b.bad.count, b.bad.sample
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		d.Manifest, err = manifest.Store(gctx)
		return err
	})
	g.Go(func() (err error) {
		d.Packs, err = b.repo.StorePacks(gctx, d.Cluster, d.Name, list)
		return err
	})
	b.reporter.phase("waiting for WAL")
	g.Go(func() error { return b.awaitWAL(gctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	if err := b.repo.AwaitSpared(ctx, d.Cluster, lendersOf(borrowed)); err != nil {
		return err
	}
	if b.incomplete, err = b.repo.StoreBackup(ctx, d, borrowed); err != nil {
		return err
	}
	if err := kept.Commit(d, list, borrowed, b.running); err != nil {
		b.Log.Warn("what is kept of older backups was not removed", "error", err.Error())
	}
	return nil
}

func lendersOf(borrowed []repo.Pack) []repo.BackupName {
	names := make(map[repo.BackupName]bool)
	for _, p := range borrowed {
		names[p.Lender] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// lent are the packs that earlier backups can lend.
func (b *run) lent() map[repo.PackID]repo.Pack {
	if b.resumed == nil {
		if b.base == nil {
			return nil
		}
		return b.base.packs // it is large, where the database is
	}
	all := maps.Clone(b.resumed.Packs)
	if b.base != nil {
		maps.Copy(all, b.base.packs)
	}
	return all
}

// Of the notes backup.json, which must stay small, keeps the first.
const (
	mostNotes = 6
	noteBytes = 400
)

func shortNotes(notes []string) []string {
	var short []string
	for _, n := range notes[:min(len(notes), mostNotes)] {
		if len(n) > noteBytes {
			n = strings.ToValidUTF8(n[:noteBytes], "") + "..."
		}
		short = append(short, n)
	}
	return short
}

// The waits between looks for the WAL: archiving takes a moment, and each look
// is a listing.
const (
	walPollFirst  = 100 * time.Millisecond
	walPollMost   = 3 * time.Second
	walPollServer = 20 * time.Millisecond
	walNotice     = 10 * time.Second
)

// pause waits between two looks, at most for limit: it is over as soon as the
// server has had the last segment archived.
func (b *run) pause(ctx context.Context, limit time.Duration, last string) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	tick := time.NewTicker(walPollServer)
	defer tick.Stop()
	before, known := b.archiverStats(ctx)
	asking := known && before.LastArchivedWAL < last
	for {
		select {
		case <-tick.C:
			if !asking {
				continue
			}
			var now postgres.ArchiverStats
			if now, asking = b.archiverStats(ctx); asking && now.LastArchivedWAL >= last {
				return nil
			}
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// awaitWAL waits until the WAL from start to stop, and the timeline's history,
// are in the repository. What the server says of archiving only tells when to
// look: what is durable there counts.
func (b *run) awaitWAL(ctx context.Context) error {
	d := b.backup
	first, last := b.walRange()
	began, noticed := b.Now(), time.Time{}
	defer func() { b.leavePrimary(ctx) }()
	for wait := walPollFirst; ; wait = min(wait*2, walPollMost) {
		missing, err := b.repo.MissingWAL(ctx, d.Cluster, first, last, d.SegmentSize)
		if err != nil {
			return err
		}
		if missing == "" {
			return nil
		}
		now := b.Now()
		if now.Sub(began) >= b.WALTimeout {
			return b.walMissing(ctx, missing)
		}
		if now.Sub(noticed) >= walNotice {
			if !noticed.IsZero() {
				b.Log.Info("waiting for WAL to be archived", "wal", missing, "last", last.Name(d.SegmentSize))
			}
			noticed = now
			if err := b.completeStop(ctx, last.Name(d.SegmentSize)); err != nil {
				return err
			}
		}
		if err := b.pause(ctx, wait, last.Name(d.SegmentSize)); err != nil {
			return err
		}
	}
}

// The segment before the start was completed by the switch that a backup begins
// with, or long ago on a standby's primary: if it has not arrived after a while, archiving does not work, or goes
// elsewhere. Better to say so now than after hours of copying.
const archivingNotice = time.Minute

// watchArchiving warns once while files are copied, until the returned function
// is called.
func (b *run) watchArchiving(ctx context.Context, start postgres.LSN) (stop func()) {
	number := start.Segment(b.backup.SegmentSize)
	if number == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		timer := time.NewTimer(archivingNotice)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		before := b.segment(ctx, number-1)
		missing, err := b.repo.MissingWAL(ctx, b.backup.Cluster, before, before, b.backup.SegmentSize)
		if err == nil && missing != "" {
			b.Log.Warn("WAL from before the backup has not arrived in the repository; if archive_command is not 'agent wal-push %p' with this repository, the backup will fail at its end",
				"wal", missing, "repository", b.repo.String())
		}
	})
	return func() {
		cancel()
		done.Wait()
	}
}

func (b *run) walMissing(ctx context.Context, missing string) error {
	why := "archive_command has not archived it"
	if a, known := b.archiverStats(ctx); known && failing(a) {
		why = fmt.Sprintf("archive_command fails for %s, last at %s", a.LastFailedWAL, a.LastFailedTime.Format(time.RFC3339))
	}
	if b.info.InRecovery {
		return b.standbyMissing(errors.New(why), missing)
	}
	return errs.Wrap(errors.New(why), errs.Server,
		"Look at the server's log for what archive_command says; it must be 'agent wal-push %p' with this repository. The files that were uploaded are not a backup; run it again when archiving works.",
		"WAL %s did not arrive in %s within %s", missing, b.repo, b.WALTimeout)
}

// failing reports whether the archiver's newest news is a failure.
func failing(a postgres.ArchiverStats) bool { return a.LastFailedTime.After(a.LastArchivedTime) }
