package repo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"agent/internal/errs"
	"agent/internal/storage"
)

// A delete announces with a tomb which backups it will touch, looks who has
// claimed any of them, says in a second object which of them it goes on with, and
// only then removes anything. A backup claims what it borrows from, and then
// looks at the tombs: so of the two at least one sees the other.

// GarbageAge is for how long what belongs to no backup is left alone: a backup
// that is still being made, or will be gone on with, needs it.
const GarbageAge = 24*time.Hour + claimTTL

// maxTomb bounds what is read of a tomb: 26 bytes for each backup.
const maxTomb = 4 << 20

// Tomb is the content of a tomb's objects.
type Tomb struct {
	ID      string       `json:"id"`
	Command string       `json:"command"`
	Host    string       `json:"host"`
	StateID string       `json:"state_id"` // random, of the host's state directory
	PID     int          `json:"pid"`
	Started time.Time    `json:"start_time"`
	Backups []BackupName `json:"backups"` // that are removed, or whose packs are
	// TTL is for how many seconds of the store's time the tomb holds.
	TTL int `json:"ttl_seconds"`
}

func (c ClusterID) tombPrefix() string           { return c.prefix() + "tomb/" }
func (c ClusterID) tombDir(id string) string     { return c.tombPrefix() + id + "/" }
func (c ClusterID) tombDecided(id string) string { return c.tombDir(id) + "decided" }
func (c ClusterID) tombKey(id string, n int) string {
	return fmt.Sprintf("%s%d", c.tombDir(id), n)
}

// Grave is a held tomb.
type Grave struct {
	renewal
	cluster ClusterID
	tomb    Tomb
	decided bool
	began   time.Time // by our clock

	skewing sync.Mutex
	skew    time.Duration
}

// buried is a tomb as a listing shows it.
type buried struct {
	first, newest storage.Info
	decided       bool
	keys          []string
}

func tombsIn(ctx context.Context, p *place, cluster ClusterID) (map[string]*buried, error) {
	all := make(map[string]*buried)
	for info, err := range p.Bucket.List(ctx, cluster.tombPrefix(), "") {
		if err != nil {
			return nil, fmt.Errorf("list tombs: %w", err)
		}
		id := firstComponent(info.Key, cluster.tombPrefix())
		t, ok := all[id]
		if !ok {
			t = new(buried)
			all[id] = t
		}
		t.keys = append(t.keys, info.Key)
		t.decided = t.decided || info.Key == cluster.tombDecided(id)
		t.first, t.newest = span(t.first, t.newest, info)
	}
	return all, nil
}

// Entomb announces a delete, and refuses while another one is announced. The
// caller holds a lock of its own state directory, so that an older tomb of it is
// that of a run which died.
func (r *Repository) Entomb(ctx context.Context, cluster ClusterID, t Tomb) (*Grave, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("read random name: %w", err)
	}
	t.ID, t.Started, t.TTL = hex.EncodeToString(b[:]), timestamp(r.now()), int(claimTTL/time.Second)
	g := &Grave{cluster: cluster, tomb: t, renewal: renewal{
		repo: r, what: "tomb", key: func(n int) string { return cluster.tombKey(t.ID, n) },
	}}
	g.began = r.now()
	if err := g.begin(ctx, t); err != nil {
		return nil, fmt.Errorf("announce the delete: %w", err)
	}
	if err := r.everywhere(ctx, "", g.alone); err != nil {
		return nil, errors.Join(err, g.Release(ctx))
	}
	return g, nil
}

// alone looks at the other tombs of a place. Of two that began together the one
// that the store took first stays. Some stores tell whole seconds: of two with the
// same time none stays, since the other may have looked before this one was there.
// Those that have expired go.
func (g *Grave) alone(ctx context.Context, p *place) error {
	all, err := tombsIn(ctx, p, g.cluster)
	if err != nil {
		return err
	}
	own, ok := all[g.tomb.ID]
	if !ok {
		return fmt.Errorf("list tombs: own tomb %s is not listed", g.tomb.ID)
	}
	g.compare(own.first.ModTime)
	for id, t := range all {
		if id == g.tomb.ID {
			continue
		}
		dead := own.first.ModTime.Sub(t.newest.ModTime) > claimTTL
		if !dead {
			dead, err = g.refuse(ctx, source{repo: g.repo, place: p}, own, t)
		}
		if err != nil {
			return err
		}
		if !dead {
			continue
		}
		if err := p.Bucket.Delete(ctx, t.keys...); err != nil {
			// It says of backups that are gone, or will be, that they are.
			g.repo.log.Warn("the announcement of an earlier delete cannot be removed", "repository", p.Name, "error", err.Error())
		}
	}
	return nil
}

func (g *Grave) compare(stored time.Time) {
	g.skewing.Lock()
	defer g.skewing.Unlock()
	if d := g.began.Sub(stored); d.Abs() > g.skew.Abs() {
		g.skew = d
	}
}

// Skew is by how much our clock is ahead of that of the store that differs most,
// to within the time that a small object takes.
func (g *Grave) Skew() time.Duration {
	g.skewing.Lock()
	defer g.skewing.Unlock()
	return g.skew
}

// refuse reads another's tomb and says whose it is, if that counts.
func (g *Grave) refuse(ctx context.Context, s source, own, t *buried) (dead bool, err error) {
	other, err := s.readTomb(ctx, t.first.Key)
	if errors.Is(err, storage.ErrNotExist) {
		return false, nil // released meanwhile
	}
	if err != nil {
		return false, err
	}
	if other.StateID != "" && other.StateID == g.tomb.StateID {
		g.repo.log.Info("an earlier delete was interrupted", "command", other.Command, "pid", other.PID)
		return true, nil
	}
	if t.first.ModTime.After(own.first.ModTime) {
		return false, nil // it gives way
	}
	return false, errs.New(errs.Locked,
		fmt.Sprintf("Wait for it, or, if that host is dead, until its tomb expires (%s after the last renewal).", claimTTL),
		"host %s deletes from this cluster at the moment (agent %s, pid %d)", other.Host, other.Command, other.PID)
}

func (s source) readTomb(ctx context.Context, key string) (Tomb, error) {
	var t Tomb
	body, err := s.readAll(ctx, key, maxTomb)
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal(body, &t); err != nil {
		return t, s.damaged(fmt.Errorf("decode: %w", err), key)
	}
	return t, nil
}

// LiveClaims are the claims of running backups.
type LiveClaims struct {
	// Named are all backups that they name, with who needs them: those that are
	// being made, and those that these borrow from.
	Named map[BackupName]BackupName
	// Since is when the first object of the oldest of them was stored, by the
	// store's clock; zero where there is none. WAL from then on is theirs.
	Since time.Time
}

// Claims are those that hold, after the tomb is there: what is claimed later will
// find the tomb. A claim that ends now has made its backup visible before.
func (g *Grave) Claims(ctx context.Context) (LiveClaims, error) {
	live := LiveClaims{Named: make(map[BackupName]BackupName)}
	err := g.repo.surely(func(p *place) error {
		tombs, err := tombsIn(ctx, p, g.cluster)
		if err != nil {
			return err
		}
		own, ok := tombs[g.tomb.ID]
		if !ok {
			return fmt.Errorf("list tombs: own tomb %s is not listed", g.tomb.ID)
		}
		return g.repo.claimsAt(ctx, p, g.cluster, own.newest.ModTime, &live)
	})
	return live, err
}

// ClaimsNow is Claims without a tomb, for a plan; now is as good as this host's
// clock.
func (r *Repository) ClaimsNow(ctx context.Context, cluster ClusterID) (LiveClaims, error) {
	live := LiveClaims{Named: make(map[BackupName]BackupName)}
	err := r.surely(func(p *place) error { return r.claimsAt(ctx, p, cluster, r.now(), &live) })
	return live, err
}

func (r *Repository) claimsAt(ctx context.Context, p *place, cluster ClusterID, now time.Time, live *LiveClaims) error {
	all, err := claimsIn(ctx, p, cluster)
	if err != nil {
		return err
	}
	for name, c := range all {
		if !c.live(now) {
			continue
		}
		s := source{repo: r, place: p}
		body, err := s.readAll(ctx, c.newest.Key, maxMarker)
		if errors.Is(err, storage.ErrNotExist) {
			continue // released: the backup is visible, or was given up
		}
		if err != nil {
			return err
		}
		var claim Claim
		if err := json.Unmarshal(body, &claim); err != nil {
			return s.damaged(fmt.Errorf("decode: %w", err), c.newest.Key)
		}
		live.Named[name] = name
		for _, lender := range append(claim.Lenders, claim.Compacts) {
			if lender != "" {
				live.Named[lender] = name
			}
		}
		if since := c.first.ModTime; live.Since.IsZero() || since.Before(live.Since) {
			live.Since = since
		}
	}
	return nil
}

// Decide says which backups the delete goes on with, before anything is removed.
func (g *Grave) Decide(ctx context.Context, backups []BackupName) error {
	t := g.tomb
	t.Backups = backups
	body, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encode tomb: %w", err)
	}
	g.decided = true
	err = g.repo.everywhere(ctx, "", func(ctx context.Context, p *place) error {
		_, err := p.putOwned(ctx, g.cluster.tombDecided(t.ID), storage.Bytes(append(body, '\n')), storage.PutOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("announce the delete: %w", err)
	}
	return nil
}

// Release removes the tomb.
func (g *Grave) Release(ctx context.Context) error {
	err := g.renewal.Release(ctx)
	if err == nil && g.decided {
		err = g.repo.everywhere(ctx, "", func(ctx context.Context, p *place) error {
			return p.Bucket.Delete(ctx, g.cluster.tombDecided(g.tomb.ID))
		})
	}
	return err
}

// Doomed names one of the backups that a delete, running or interrupted, has
// announced to touch; empty: none. undecided: it has not said yet whether it goes
// on with that. It costs a listing of each place.
func (r *Repository) Doomed(ctx context.Context, cluster ClusterID, names []BackupName) (doomed BackupName, undecided bool, err error) {
	if len(names) == 0 {
		return "", false, nil
	}
	err = r.surely(func(p *place) error {
		tombs, err := tombsIn(ctx, p, cluster)
		if err != nil {
			return err
		}
		for id, t := range tombs {
			key := t.first.Key
			if t.decided {
				key = cluster.tombDecided(id)
			}
			tomb, err := source{repo: r, place: p}.readTomb(ctx, key)
			if errors.Is(err, storage.ErrNotExist) {
				continue // it has ended: what it removed is gone
			}
			if err != nil {
				return err
			}
			for _, name := range names {
				if slices.Contains(tomb.Backups, name) {
					doomed, undecided = name, !t.decided
				}
			}
		}
		return nil
	})
	return doomed, undecided, err
}

// How long a backup that is all but made waits for a delete to say whether it goes
// on with what the backup borrows, and how often it looks.
const (
	spareWait = time.Minute
	spareLook = time.Second
)

// AwaitSpared is nil if no delete takes any of the backups away. One that was
// announced after they were claimed has seen the claim, and says so.
func (r *Repository) AwaitSpared(ctx context.Context, cluster ClusterID, lenders []BackupName) error {
	limit := time.NewTimer(spareWait)
	defer limit.Stop()
	tick := time.NewTicker(spareLook)
	defer tick.Stop()
	for {
		doomed, undecided, err := r.Doomed(ctx, cluster, lenders)
		switch {
		case err != nil || doomed == "":
			return err
		case !undecided:
			return errs.New(errs.Locked, "Run the backup again.", "packs of backup %s, which are borrowed, are being deleted", doomed)
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return errs.New(errs.Locked, "Run agent delete garbage --confirm, which clears away what an interrupted delete has left, then the backup again.",
				"a delete was announced for backup %s, of which packs are borrowed, and was not gone on with", doomed)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
