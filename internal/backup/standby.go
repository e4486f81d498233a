package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"agent/internal/errs"
	"agent/internal/postgres"
)

// primaryAnswer bounds each question to the primary, which is on another host.
const primaryAnswer = 15 * time.Second

const hintAgain = "Run the backup again; what was uploaded is not a backup."

// onTimeline proves, before files are copied for hours, that the standby's last
// restartpoint, with which the backup begins, is on the timeline that the
// standby follows. Behind a failover it is not until the new primary has made a
// checkpoint. The restartpoint itself may be what brought the standby's control
// file to the timeline.
func (b *run) onTimeline(ctx context.Context) error {
	if !b.info.InRecovery {
		return nil
	}
	control, _, err := postgres.ReadControl(ctx, b.dataDir)
	if err != nil {
		return err
	}
	if control.MinRecoveryTimeline > control.Timeline {
		return errs.New(errs.Server, "Run CHECKPOINT on the primary, wait until the standby has replayed it, and run the backup again.",
			"the standby follows timeline %d, its last restartpoint is on timeline %d", control.MinRecoveryTimeline, control.Timeline)
	}
	b.info.Timeline = control.Timeline
	return nil
}

// segment is the segment of a number under the name that it has in the archive.
// The restartpoint with which a standby's backup begins may be the first one of
// its timeline; what is before it is then of an older timeline.
func (b *run) segment(ctx context.Context, number uint64) postgres.Segment {
	s := postgres.Segment{Timeline: b.info.Timeline, Number: number}
	if !b.info.InRecovery || s.Timeline == 1 {
		return s
	}
	histories, _, err := b.repo.Histories(ctx, b.cluster())
	if err != nil || len(histories[s.Timeline]) == 0 {
		return s
	}
	last := postgres.LSN((number+1)*uint64(b.control.WALSegmentSize) - 1)
	s.Timeline = histories[s.Timeline].TimelineAt(last)
	return s
}

// archivedPatience is how long the WAL before the start may take to the
// repository, once, before what has changed is told without its summaries, and
// archivedPoll how often it is looked for.
const (
	archivedPatience = 20 * time.Second
	archivedPoll     = 200 * time.Millisecond
)

// awaitBefore waits until the WAL before the start has arrived in the
// repository, with its summary. A primary keeps in pg_wal what is not archived
// yet; a standby removes it with each restartpoint, such as that with which the
// backup began.
func (b *run) awaitBefore(ctx context.Context, start postgres.LSN) error {
	size := b.control.WALSegmentSize
	if !b.info.InRecovery || start.Segment(size) == 0 {
		return nil
	}
	before := b.segment(ctx, start.Segment(size)-1)
	file, err := postgres.ParseWALFile(before.Name(size))
	if err != nil {
		return err
	}
	limit := time.NewTimer(archivedPatience)
	defer limit.Stop()
	tick := time.NewTicker(archivedPoll)
	defer tick.Stop()
	for {
		missing, err := b.repo.MissingWAL(ctx, b.cluster(), before, before, size)
		if err != nil {
			return err
		}
		if missing == "" && b.repo.OpensSummaries() {
			_, err = b.repo.ReadSummary(ctx, b.cluster(), file)
		}
		if missing == "" && err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-limit.C:
			b.note(fmt.Sprintf("WAL %s, which is before the start, has not arrived in the repository with its summary within %s", before.Name(size), archivedPatience))
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// stopFailed explains why the server refused to end the backup.
func (b *run) stopFailed(ctx context.Context, err error) error {
	if !b.info.InRecovery {
		return err
	}
	if after, ierr := b.server.Info(ctx); ierr == nil && !after.InRecovery {
		return b.promoted(after)
	}
	return err
}

func (b *run) promoted(after postgres.Info) error {
	return errs.New(errs.Server, hintAgain+" The next backup is one of a primary.",
		"the standby was promoted during the backup (timeline %d, then %d)", b.info.Timeline, after.Timeline)
}

// unchanged proves that role and timeline are what they were: a backup across
// a promotion is of no server, and the WAL of one across a failover of the
// primary lies on two timelines.
func (b *run) unchanged(after postgres.Info, label postgres.BackupLabel) error {
	before := b.info
	switch {
	case before.InRecovery && !after.InRecovery:
		return b.promoted(after)
	case after.InRecovery != before.InRecovery:
		return errs.New(errs.Server, hintAgain, "the server changed its role during the backup")
	case after.Timeline != before.Timeline:
		return errs.New(errs.Server, hintAgain, "the server went to another timeline during the backup (timeline %d, then %d)", before.Timeline, after.Timeline)
	case label.StartTimeline != before.Timeline:
		return errs.New(errs.Server, hintAgain, "the backup begins on timeline %d, the server is on timeline %d", label.StartTimeline, before.Timeline)
	case (label.From == "standby") != before.InRecovery:
		return errs.New(errs.Server, hintAgain, "the server's backup label is of another role than the server")
	}
	return nil
}

// completeStop sees to it that the segment in which a standby's backup ends is
// completed: nothing ends it on the standby, and an idle primary does not for
// hours. It asks the primary to switch WAL, once with success. What keeps it
// from asking is kept for the error when the WAL does not arrive: the segment
// may be completed all the same.
func (b *run) completeStop(ctx context.Context, last string) error {
	if !b.info.InRecovery || b.switched {
		return nil
	}
	err := b.switchPrimary(ctx, last)
	var wrong primaryError
	switch {
	case err == nil:
		b.switched, b.notAsked = true, nil
		return nil
	case errors.As(err, &wrong):
		return wrong.error
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	if b.notAsked == nil {
		b.Log.Warn("the primary could not be asked to complete the WAL segment in which the backup ends; the backup waits for it", "wal", last,
			"error", err.Error(), "hint", errs.HintOf(err))
	}
	b.notAsked = err
	return b.following(ctx, last)
}

// following notices a failover while the backup waits for its last segment:
// nobody completes that on its timeline any more. A standby that does not answer
// tells nothing.
func (b *run) following(ctx context.Context, last string) error {
	now, err := b.server.Info(ctx)
	what := ""
	switch {
	case err != nil:
		b.Log.Debug("ask the standby for its timeline", "error", err.Error())
	case !now.InRecovery:
		what = "was promoted to"
	case now.Timeline != b.info.Timeline:
		what = "went to"
	}
	if what == "" {
		return nil
	}
	return errs.New(errs.Server, hintAgain, "the standby %s timeline %d before WAL %s, in which the backup ends, had arrived in %s", what, now.Timeline, last, b.repo)
}

// primaryError says that the primary is the wrong one, which no waiting mends.
type primaryError struct{ error }

// switchPrimary makes the primary leave the segment in which the backup ends,
// and keeps the session. The primary's position is behind the backup's stop, in
// whose segment there is at least one record, so that the switch is never one of
// an empty segment, which does nothing.
func (b *run) switchPrimary(ctx context.Context, last string) error {
	if err := b.connectPrimary(ctx); err != nil {
		return err
	}
	ask, cancel := context.WithTimeout(ctx, primaryAnswer)
	defer cancel()
	info, err := b.primary.Info(ask)
	if err != nil {
		return err
	}
	if err := info.RequireCluster(b.info); err != nil {
		return primaryError{err}
	}
	if info.Timeline != b.backup.Timeline {
		return primaryError{errs.New(errs.Server, hintAgain+" If the primary is another server, correct primary_conninfo (--primary).",
			"the primary is on timeline %d, and WAL %s, in which the backup ends on timeline %d, has not arrived in %s", info.Timeline, last, b.backup.Timeline, b.repo)}
	}
	at, err := b.primary.InsertLSN(ask)
	if err != nil {
		return err
	}
	if _, end := b.walRange(); at.Segment(b.backup.SegmentSize) > end.Number {
		return nil
	}
	if _, err := b.primary.SwitchWAL(ask); err != nil {
		return err
	}
	b.Log.Info("the primary has completed the WAL segment in which the backup ends", "wal", last)
	return nil
}

// connectPrimary opens a session with the primary, in place of an earlier one
// that failed.
func (b *run) connectPrimary(ctx context.Context) error {
	b.leavePrimary(ctx)
	conninfo := b.PrimaryConnInfo
	if conninfo == "" {
		var err error
		if conninfo, err = b.server.PrimaryConnInfo(ctx); err != nil {
			return err
		}
	}
	session, err := postgres.ConnectPrimary(ctx, conninfo, "agent backup-push")
	if err != nil {
		return err
	}
	b.primary = session
	return nil
}

// leavePrimary ends the session with the primary, if there is one.
func (b *run) leavePrimary(ctx context.Context) {
	if b.primary == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := b.primary.Close(ctx); err != nil {
		b.Log.Debug("end session with the primary", "error", err.Error())
	}
	b.primary = nil
}

// archiverStats asks the server that archives the backup's WAL how that goes.
// A standby does not archive unless archive_mode is always, and then its
// figures are of an earlier life. known is false where nobody can be asked.
func (b *run) archiverStats(ctx context.Context) (stats postgres.ArchiverStats, known bool) {
	server := b.server
	switch {
	case b.primary != nil:
		server = b.primary
	case b.info.InRecovery && b.info.ArchiveMode != "always":
		return stats, false
	}
	ctx, cancel := context.WithTimeout(ctx, primaryAnswer)
	defer cancel()
	stats, err := server.ArchiverStats(ctx)
	return stats, err == nil
}

// standbyMissing explains why the WAL of a backup from a standby is not there.
func (b *run) standbyMissing(why error, missing string) error {
	if b.notAsked != nil {
		why = fmt.Errorf("the primary could not be asked to complete it: %w", withoutHint(b.notAsked))
	}
	return errs.Wrap(why, errs.Server,
		"The primary completes and archives it: run SELECT pg_switch_wal() there, or give the agent the setting primary_conninfo (--primary) with a role that may; "+
			"its archive_command must be 'agent wal-push %p' with this repository. The files that were uploaded are not a backup; run it again.",
		"WAL %s did not arrive in %s within %s", missing, b.repo, b.WALTimeout)
}

// withoutHint keeps an error's text: its hint was told in the log, and would
// hide what matters more now.
func withoutHint(err error) error { return errors.New(err.Error()) }
