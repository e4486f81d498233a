package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
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
	opts    ClaimOptions
	repo    *Repository
	cluster ClusterID
	claim   Claim
	renewed int
}

// Claim announces a backup, and refuses while another host's backup of the
// cluster is announced (unless told otherwise). The caller holds the lock
// of its own state directory, so that an older claim from this host and state
// directory is that of a run which died, and does not count.
func (r *Repository) Claim(ctx context.Context, cluster ClusterID, c Claim, opts ClaimOptions) (*Lease, error) {
	c.Started, c.TTL = timestamp(r.now()), int(claimTTL/time.Second)
	l := &Lease{opts: opts, repo: r, cluster: cluster, claim: c}
	if err := l.put(ctx, 0); err != nil {
		return nil, err
	}
	if opts.Concurrent {
		return l, nil
	}
	if err := l.alone(ctx); err != nil {
		return nil, errors.Join(err, l.Release(ctx))
	}
	return l, nil
}

func (l *Lease) put(ctx context.Context, n int) error {
	body, err := json.Marshal(l.claim)
	if err != nil {
		return fmt.Errorf("encode claim: %w", err)
	}
	body = append(body, '\n')
	// A claim is never locked: it is to go when the backup ends.
	err = l.repo.everywhere(ctx, "", func(ctx context.Context, p *place) error {
		_, err := p.putOwned(ctx, l.cluster.claimKey(l.claim.Backup, n), storage.Bytes(body), storage.PutOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("claim the backup: %w", err)
	}
	return nil
}

// alone looks at the other claims, in each place: hosts may share some of their
// places only.
func (l *Lease) alone(ctx context.Context) error {
	return l.repo.everywhere(ctx, "", l.aloneAt)
}

// aloneAt looks at the other claims of a place. Of two that began together the
// one that the store took first stays; the name decides between equal times.
func (l *Lease) aloneAt(ctx context.Context, p *place) error {
	// A claim counts from its first object, and lives from its newest: one
	// that is renewed while we look was there before us all the same.
	first, newest := make(map[BackupName]storage.Info), make(map[BackupName]storage.Info)
	ended := make(map[BackupName]bool)
	for info, err := range p.Bucket.List(ctx, l.cluster.claimPrefix(), "") {
		if err != nil {
			return fmt.Errorf("list claims: %w", err)
		}
		name, err := ParseBackupName(firstComponent(info.Key, l.cluster.claimPrefix()))
		if err != nil {
			continue
		}
		if info.Key == l.cluster.claimEnd(name) {
			ended[name] = true
			continue
		}
		if old, ok := newest[name]; !ok || info.ModTime.After(old.ModTime) {
			newest[name] = info
		}
		if old, ok := first[name]; !ok || info.ModTime.Before(old.ModTime) {
			first[name] = info
		}
	}
	own, ok := first[l.claim.Backup]
	if !ok {
		return fmt.Errorf("list claims: own claim %s is not listed", l.claim.Backup)
	}
	for name, info := range newest {
		if name == l.claim.Backup || ended[name] || own.ModTime.Sub(info.ModTime) > claimTTL {
			continue
		}
		since := first[name].ModTime
		if since.After(own.ModTime) || since.Equal(own.ModTime) && name > l.claim.Backup {
			continue
		}
		if err := l.refuse(ctx, source{repo: l.repo, place: p}, info); err != nil {
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

// Renew keeps the claim from expiring.
func (l *Lease) Renew(ctx context.Context) error {
	l.renewed++
	return l.put(ctx, l.renewed)
}

// Hold keeps the claim alive until the returned function is called. A claim that
// cannot be renewed ends the work by cancel: another host may take it for dead.
func (l *Lease) Hold(ctx context.Context, cancel context.CancelCauseFunc) (stop func()) {
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(ClaimRenewal)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := l.Renew(ctx); err != nil {
					cancel(fmt.Errorf("renew claim: %w", err))
					return
				}
			case <-ctx.Done():
				return
			case <-quit:
				return
			}
		}
	})
	return func() {
		close(quit)
		done.Wait()
	}
}

// Release removes the claim. Where these credentials may not delete, it is
// ended by one more object.
func (l *Lease) Release(ctx context.Context) error {
	keys := make([]string, 0, l.renewed+1)
	for n := range l.renewed + 1 {
		keys = append(keys, l.cluster.claimKey(l.claim.Backup, n))
	}
	err := l.repo.everywhere(ctx, "", func(ctx context.Context, p *place) error {
		err := p.Bucket.Delete(ctx, keys...)
		if !errors.Is(err, storage.ErrPermission) {
			return err
		}
		_, err = p.putOwned(ctx, l.cluster.claimEnd(l.claim.Backup), storage.Bytes("{}\n"), storage.PutOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("release claim: %w", err)
	}
	return nil
}
