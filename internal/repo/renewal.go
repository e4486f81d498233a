package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"agent/internal/storage"
)

// renewal is what tells every host that something is being done: an object, and
// one more each time that it is renewed. Without that it expires, by the store's
// clock alone.
type renewal struct {
	repo  *Repository
	what  string // for messages
	key   func(n int) string
	ended string // key that ends it where nothing may be deleted; empty: none
	body  []byte

	mu      sync.Mutex
	renewed int
	last    time.Time // when it was renewed, by our clock
}

func (l *renewal) begin(ctx context.Context, content any) error {
	body, err := json.Marshal(content)
	if err != nil {
		return fmt.Errorf("encode %s: %w", l.what, err)
	}
	body = append(body, '\n')
	l.body = body
	return l.put(ctx, 0)
}

func (l *renewal) put(ctx context.Context, n int) error {
	at := l.repo.now()
	// It is never locked: it is to go when the work ends.
	err := l.repo.everywhere(ctx, "", func(ctx context.Context, p *place) error {
		_, err := p.putOwned(ctx, l.key(n), storage.Bytes(l.body), storage.PutOptions{})
		return err
	})
	if err == nil {
		l.last = at
	}
	return err
}

// Renew keeps it from expiring.
func (l *renewal) Renew(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renew(ctx)
}

func (l *renewal) renew(ctx context.Context) error {
	l.renewed++
	return l.put(ctx, l.renewed)
}

// Current renews it if that has not been done for a while: a process that was
// stopped, or a host that slept, may find that others have taken it for dead.
func (l *renewal) Current(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	since := l.repo.now().Sub(l.last)
	switch {
	case since < 0 || since >= claimTTL-ClaimRenewal:
		return fmt.Errorf("renew %s: it was not renewed for %s, and others may take it for dead", l.what, since.Round(time.Second))
	case since >= ClaimRenewal+time.Minute:
		return l.renew(ctx)
	default:
		return nil
	}
}

// Hold keeps it alive until the returned function is called. What cannot be
// renewed ends the work by cancel: another host may take it for dead.
func (l *renewal) Hold(ctx context.Context, cancel context.CancelCauseFunc) (stop func()) {
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(ClaimRenewal)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := l.Renew(ctx); err != nil {
					cancel(fmt.Errorf("renew %s: %w", l.what, err))
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

// Release removes it. Where these credentials may not delete, it is ended by
// one more object.
func (l *renewal) Release(ctx context.Context) error {
	l.mu.Lock()
	keys := make([]string, 0, l.renewed+1)
	for n := range l.renewed + 1 {
		keys = append(keys, l.key(n))
	}
	l.mu.Unlock()
	err := l.repo.everywhere(ctx, "", func(ctx context.Context, p *place) error {
		err := p.Bucket.Delete(ctx, keys...)
		if l.ended == "" || !errors.Is(err, storage.ErrPermission) {
			return err
		}
		_, err = p.putOwned(ctx, l.ended, storage.Bytes("{}\n"), storage.PutOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("release %s: %w", l.what, err)
	}
	return nil
}
