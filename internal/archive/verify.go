package archive

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/repo"
)

// Kind says what is wrong.
type Kind string

// The kinds of findings. Two are no failures: Behind is what a best-effort
// repository lacks, which agent repo sync brings; Dropped are segments that were
// given up on purpose and behind which a backup has begun since then.
const (
	Damaged     Kind = "damaged"
	Unreachable Kind = "unreachable"
	Gap         Kind = "gap"
	Behind      Kind = "behind"
	Dropped     Kind = "dropped"
)

// Finding is one thing that is wrong with the archived WAL.
type Finding struct {
	Kind       Kind
	Repository string // name; "" for what is wrong in all of them
	Key        string // of the object that is damaged; "" if it is about no object
	// Missing are the segments that are not there; nil if it is about none.
	Missing *Span
	// File is a missing file that is no segment: a timeline's history.
	File    string
	Dropped bool // it is recorded that they were dropped
	Err     error
	Backups []repo.BackupName // that cannot be recovered past it, or at all
}

// Verdict is what a verification has found.
type Verdict struct {
	Findings []Finding
	// Backups are those that were looked at.
	Backups []*repo.Backup
	// Objects and Bytes are how many objects were read, and their stored bytes.
	Objects, Bytes int64
}

// add adds a finding, or another backup to one that is there.
func (v *Verdict) add(f Finding) {
	i := slices.IndexFunc(v.Findings, func(o Finding) bool {
		return o.Kind == f.Kind && o.Repository == f.Repository && o.Key == f.Key && o.File == f.File && o.Key == "" && o.Err == nil && f.Err == nil &&
			(o.Missing == nil) == (f.Missing == nil) && (f.Missing == nil || *o.Missing == *f.Missing)
	})
	if i < 0 {
		v.Findings = append(v.Findings, f)
		return
	}
	for _, b := range f.Backups {
		if !slices.Contains(v.Findings[i].Backups, b) {
			v.Findings[i].Backups = append(v.Findings[i].Backups, b)
		}
	}
}

// Verify looks whether each required place has all WAL of the backups: from the
// start of each to the end of its timeline and of those that came of it. It asks
// the stores nothing.
func (s *Survey) Verify(backups []*repo.Backup) (*Verdict, error) {
	return s.VerifyReach(backups, ToEnd)
}

// Reach says how much of the WAL behind a backup is looked at.
type Reach uint8

// The reaches.
const (
	ToEnd  Reach = iota // along all timelines
	ToStop              // what the backup cannot be restored without
)

// VerifyReach is Verify of so much of the WAL.
func (s *Survey) VerifyReach(backups []*repo.Backup, reach Reach) (*Verdict, error) {
	v := &Verdict{Backups: backups}
	for _, p := range s.Scan.Places {
		if p.Err != nil {
			v.add(Finding{Kind: Unreachable, Repository: p.Name, Err: p.Err})
		}
	}
	for _, t := range s.Timelines() {
		if err := s.Damaged[t]; err != nil {
			v.add(Finding{Kind: Damaged, File: t.String() + ".history", Err: err})
		}
	}
	if s.Unread != nil {
		v.add(Finding{Kind: Damaged, Err: s.Unread})
	}
	for _, b := range backups {
		spans, err := s.needs(b, reach)
		if err != nil {
			return nil, fmt.Errorf("find the WAL of backup %s: %w", b.Name, err)
		}
		for _, p := range s.Scan.Places {
			if p.Err != nil {
				continue
			}
			for _, want := range spans {
				s.compare(v, b, p, want)
			}
		}
	}
	return v, nil
}

// compare looks for a span that a backup needs in one place.
func (s *Survey) compare(v *Verdict, b *repo.Backup, p repo.WALHeld, want Span) {
	kind := Gap
	if !p.Required {
		kind = Behind
	}
	t := want.First.Timeline
	if t > 1 && !slices.Contains(p.Histories, t) {
		v.add(Finding{Kind: kind, Repository: p.Name, File: t.String() + ".history", Backups: []repo.BackupName{b.Name}})
	}
	for _, missing := range Missing(p.Ranges, want) {
		for _, hole := range split(missing, s.dropped(t), s.Open()) {
			kind := kind
			if hole.Dropped && !hole.Open && !s.own(b, hole.Span) {
				kind = Dropped
			}
			v.add(Finding{Kind: kind, Repository: p.Name, Missing: &hole.Span, Dropped: hole.Dropped, Backups: []repo.BackupName{b.Name}})
		}
	}
}

// own reports whether the backup cannot be restored at all without the span.
func (s *Survey) own(b *repo.Backup, sp Span) bool {
	stop, err := postgres.ParseSegment(b.StopSegment, s.Size)
	return err != nil || sp.First.Timeline == b.Timeline && sp.First.Number <= stop.Number
}

// required reports whether what is wrong there is a failure: a best-effort
// place may be away.
func (s *Survey) required(place string) bool {
	return place == "" || slices.ContainsFunc(s.Scan.Places, func(p repo.WALHeld) bool { return p.Name == place && p.Required })
}

// fails reports whether a finding is a failure.
func (s *Survey) fails(f Finding) bool {
	switch f.Kind {
	case Behind, Dropped:
		return false
	case Unreachable:
		return s.required(f.Repository)
	default:
		return true
	}
}

// Status is the worst kind that is a failure, or "ok": damage first, since it is
// a fact and does not pass; then that a repository could not be asked, since what
// it has is not known; then gaps.
func (s *Survey) Status(v *Verdict) string {
	for _, k := range []Kind{Damaged, Unreachable, Gap} {
		if slices.ContainsFunc(v.Findings, func(f Finding) bool { return f.Kind == k && s.fails(f) }) {
			return string(k)
		}
	}
	return "ok"
}

// Err is nil unless something fails. Its kind is that of Status.
func (s *Survey) Err(v *Verdict) error {
	var kind errs.Kind
	var hint string
	status := s.Status(v)
	switch Kind(status) {
	case Damaged:
		kind, hint = errs.Damaged, "Bring a good copy of each object back from another repository (agent repo sync) or an older version in the bucket; else take a new backup: agent backup-push."
	case Unreachable:
		kind, hint = errs.Storage, "Look whether the repository can be reached, and run the same command again."
	case Gap:
		kind, hint = errs.Gap, "Take a new backup now (agent backup-push): recoveries of the older ones end before the gap. Missing segments may still lie in a server's pg_wal (agent wal-push) or in another repository (agent repo sync)."
	default:
		return nil
	}
	counts := make(map[Kind]int)
	first := ""
	for _, f := range v.Findings {
		if !s.fails(f) {
			continue
		}
		counts[f.Kind]++
		if first == "" && f.Kind == Kind(status) {
			first = f.Text(s.Size)
		}
	}
	var parts []string
	for _, k := range []Kind{Damaged, Unreachable, Gap} {
		if counts[k] > 0 {
			parts = append(parts, fmt.Sprintf("%s: %d", k, counts[k]))
		}
	}
	return errs.New(kind, hint, "the archived WAL is not all well (%s): %s", strings.Join(parts, ", "), first)
}

// Text says in one line what is wrong.
func (f Finding) Text(size postgres.SegmentSize) string {
	where := ""
	if f.Repository != "" {
		where = " in repository " + f.Repository
	}
	switch {
	case f.Missing != nil && f.Missing.First == f.Missing.Last:
		return fmt.Sprintf("%s is %s%s", f.Missing.First.Name(size), f.lost(), where)
	case f.Missing != nil:
		return fmt.Sprintf("%s to %s, %d segments, are %s%s", f.Missing.First.Name(size), f.Missing.Last.Name(size), f.Missing.Segments(), f.lost(), where)
	case f.Err != nil:
		return strings.ReplaceAll(f.Err.Error(), "\n", "; ")
	default:
		return fmt.Sprintf("%s is %s%s", f.File, f.lost(), where)
	}
}

func (f Finding) lost() string {
	if f.Dropped {
		return "dropped (max_backlog)"
	}
	return "missing"
}

// sortFindings puts findings into the order in which they are told.
func sortFindings(v *Verdict) {
	order := []Kind{Damaged, Unreachable, Gap, Behind, Dropped}
	slices.SortStableFunc(v.Findings, func(a, b Finding) int {
		return cmp.Compare(slices.Index(order, a.Kind), slices.Index(order, b.Kind))
	})
}

// Deep is Verify, and then reads objects, each once: of the places that can be
// listed, as o says. Its error ends the verification before its end: ctx is
// over, or no identity fits.
func (s *Survey) Deep(ctx context.Context, r *repo.Repository, backups []*repo.Backup, o DeepOptions) (*Verdict, error) {
	v, err := s.VerifyReach(backups, o.Reach)
	if err != nil {
		return nil, err
	}
	for _, p := range s.Scan.Places {
		if p.Err != nil {
			continue
		}
		d := &reading{survey: s, repo: r, place: p, verdict: v, backups: backups, opts: o}
		if err := d.run(ctx); err != nil {
			return nil, err
		}
	}
	sortFindings(v)
	return v, nil
}
