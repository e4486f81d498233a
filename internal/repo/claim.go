package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"agent/internal/errs"
	"agent/internal/storage"
)

// Claims tell every host that shares a repository that a backup is being made.
// They are objects, created once each: a running backup renews its claim by
// creating the next one, and removes them all when it ends. A claim that is
// not renewed expires, by the store's clock alone.

const (
	claimTTL = 15 * time.Minute
	// ClaimRenewal is how often a running backup renews its claim.
	ClaimRenewal = 4 * time.Minute
)

// Claim is the content of a claim object.
type Claim struct {
	Backup BackupName `json:"backup"`
	// Compacts is the backup out of which that one is made, without the
	// database: such a claim keeps nobody from making a backup.
	Compacts BackupName `json:"compacts,omitempty"`
	Host     string     `json:"host"`
	State    string     `json:"state_directory"`
	StateID  string     `json:"state_id"` // random, of that state directory
	PID      int        `json:"pid"`
	Started  time.Time  `json:"start_time"`
	// Lenders are backups whose packs this one may borrow: a delete spares them.
	Lenders []BackupName `json:"lenders,omitempty"`
	// TTL is for how many seconds of the store's time the claim holds.
	TTL int `json:"ttl_seconds"`
}

// ClaimOptions say what to make of the claims of others.
type ClaimOptions struct {
	Concurrent bool // do not refuse beside another backup
	// Running tells whether a backup that claims this host and state directory
	// is still being made; nil: none is.
	Running func(BackupName) bool
}

// Lease is a held claim.
type Lease struct {
	renewal
	opts    ClaimOptions
	cluster ClusterID
	claim   Claim
}

// Claim announces a backup, and refuses while another host's backup of the
// cluster is announced (unless told otherwise). The caller holds the lock
// of its own state directory, so that an older claim from this host and state
// directory is that of a run which died, and does not count.
func (r *Repository) Claim(ctx context.Context, cluster ClusterID, c Claim, opts ClaimOptions) (*Lease, error) {
	c.Started, c.TTL = timestamp(r.now()), int(claimTTL/time.Second)
	l := &Lease{opts: opts, cluster: cluster, claim: c, renewal: renewal{
		repo: r, what: "claim", ended: cluster.claimEnd(c.Backup),
		key: func(n int) string { return cluster.claimKey(c.Backup, n) },
	}}
	if err := l.begin(ctx, c); err != nil {
		return nil, fmt.Errorf("claim the backup: %w", err)
	}
	if opts.Concurrent {
		return l, nil
	}
	if err := l.alone(ctx); err != nil {
		return nil, errors.Join(err, l.Release(ctx))
	}
	return l, nil
}

// alone looks at the other claims, in each place: hosts may share some of their
// places only.
func (l *Lease) alone(ctx context.Context) error {
	return l.repo.everywhere(ctx, "", l.aloneAt)
}

// claimed is a claim as a listing shows it.
type claimed struct {
	// A claim counts from its first object, and lives from its newest: one
	// that is renewed while we look was there before us all the same.
	first, newest storage.Info
	ended         bool
	objects       []storage.Info
}

// live reports whether the claim holds at a time of the store.
func (c *claimed) live(now time.Time) bool {
	return !c.ended && now.Sub(c.newest.ModTime) <= claimTTL
}

// claimsIn lists the claims of a place.
func claimsIn(ctx context.Context, p *place, cluster ClusterID) (map[BackupName]*claimed, error) {
	all := make(map[BackupName]*claimed)
	for info, err := range p.Bucket.List(ctx, cluster.claimPrefix(), "") {
		if err != nil {
			return nil, fmt.Errorf("list claims: %w", err)
		}
		name, err := ParseBackupName(firstComponent(info.Key, cluster.claimPrefix()))
		if err != nil {
			continue
		}
		c, ok := all[name]
		if !ok {
			c = new(claimed)
			all[name] = c
		}
		c.objects = append(c.objects, info)
		if info.Key == cluster.claimEnd(name) {
			c.ended = true
			continue
		}
		c.first, c.newest = span(c.first, c.newest, info)
	}
	return all, nil
}

// span keeps the first and the newest of several objects.
func span(first, newest, info storage.Info) (storage.Info, storage.Info) {
	if first.Key == "" || info.ModTime.Before(first.ModTime) {
		first = info
	}
	if newest.Key == "" || info.ModTime.After(newest.ModTime) {
		newest = info
	}
	return first, newest
}

// aloneAt looks at the other claims of a place. Of two that began together the
// one that the store took first stays; the name decides between equal times.
func (l *Lease) aloneAt(ctx context.Context, p *place) error {
	all, err := claimsIn(ctx, p, l.cluster)
	if err != nil {
		return err
	}
	own, ok := all[l.claim.Backup]
	if !ok || own.first.Key == "" {
		return fmt.Errorf("list claims: own claim %s is not listed", l.claim.Backup)
	}
	for name, c := range all {
		if name == l.claim.Backup || !c.live(own.first.ModTime) {
			continue
		}
		since := c.first.ModTime
		if since.After(own.first.ModTime) || since.Equal(own.first.ModTime) && name > l.claim.Backup {
			continue
		}
		if err := l.refuse(ctx, source{repo: l.repo, place: p}, c.newest); err != nil {
			return err
		}
	}
	return nil
}

// refuse reads another's claim and says who holds it; nil if it does not count.
func (l *Lease) refuse(ctx context.Context, s source, info storage.Info) error {
	body, err := s.readAll(ctx, info.Key, maxMarker)
	if errors.Is(err, storage.ErrNotExist) {
		return nil // released meanwhile
	}
	if err != nil {
		return err
	}
	var other Claim
	if err := json.Unmarshal(body, &other); err != nil {
		return s.damaged(fmt.Errorf("decode: %w", err), info.Key)
	}
	if other.Compacts != "" {
		return nil
	}
	here := other.StateID != "" && other.StateID == l.claim.StateID
	if here && (l.opts.Running == nil || !l.opts.Running(other.Backup)) {
		l.repo.log.Info("earlier backup was interrupted", "backup", string(other.Backup), "pid", other.PID)
		return nil
	}
	return errs.New(errs.Locked,
		fmt.Sprintf("Wait for it, or, if that host is dead, until its claim expires (%s after the last renewal), or allow two at once with --allow-concurrent.", claimTTL),
		"backup %s is being made by host %s (pid %d)", other.Backup, other.Host, other.PID)
}
