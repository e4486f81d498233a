package decorate

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"agent/internal/storage"
)

// Bodies take the time that their length and the limit say, in both
// directions and whatever the number of operations; the clock is the bubble's.
func TestBandwidth(t *testing.T) {
	dir := fastDir(t)
	inner := openFS(t, dir)
	synctest.Test(t, func(t *testing.T) {
		const perSecond, size = 1 << 20, 10 << 20
		for _, opts := range []BandwidthOptions{{Up: perSecond}, {Down: perSecond}, {Up: perSecond, Down: perSecond / 2}, {}} {
			b := Bandwidth(inner, opts)
			took := func(want int64, f func() error) {
				t.Helper()
				start := time.Now()
				if err := f(); err != nil {
					t.Fatal(err)
				}
				expect := time.Duration(0)
				if want > 0 {
					expect = time.Duration(size/want) * time.Second
				}
				// One piece, a twentieth of a second, is free at the start.
				if got := time.Since(start); got > expect || got < expect-expect/10 {
					t.Errorf("%+v: took %v, want %v", opts, got, expect)
				}
			}
			took(opts.Up, func() error {
				_, err := b.Put(t.Context(), "k", storage.Bytes(make([]byte, size)), storage.PutOptions{})
				return err
			})
			took(opts.Down, func() error {
				r, _, err := b.Get(t.Context(), "k")
				if err != nil {
					return err
				}
				_, err = io.Copy(io.Discard, r)
				return errors.Join(err, r.Close())
			})
			took(opts.Down, func() error {
				for i := range int64(2) {
					r, err := b.GetRange(t.Context(), "k", i*size/2, size/2)
					if err != nil {
						return err
					}
					if _, err = io.Copy(io.Discard, r); err != nil {
						return err
					}
					if err := r.Close(); err != nil {
						return err
					}
				}
				return nil
			})
			if err := b.Delete(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// The smallest limit still lets bytes through, and a wait ends with the
// context, or before it when the deadline would come first.
func TestBandwidthStopsWithContext(t *testing.T) {
	inner := openFS(t, fastDir(t))
	synctest.Test(t, func(t *testing.T) {
		b := Bandwidth(inner, BandwidthOptions{Up: 1, Down: 1})
		if _, err := b.Put(t.Context(), "small", storage.Bytes("x"), storage.PutOptions{}); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			synctest.Wait()
			cancel()
		}()
		if _, err := b.Put(ctx, "k", storage.Bytes(make([]byte, 10000)), storage.PutOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Put(ctx, "k", storage.Bytes(make([]byte, 10000)), storage.PutOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a deadline: %v", err)
		}
		if _, err := b.Stat(t.Context(), "k"); !errors.Is(err, storage.ErrNotExist) {
			t.Errorf("stat: %v", err)
		}
	})
}

// Bodies that can seek still can, and others still cannot.
func TestWrappedBodiesSeek(t *testing.T) {
	for name, wrap := range map[string]func(storage.Bucket) storage.Bucket{
		"bandwidth": func(b storage.Bucket) storage.Bucket { return Bandwidth(b, BandwidthOptions{Up: 1 << 30}) },
		"timeout":   func(b storage.Bucket) storage.Bucket { return Timeout(b, TimeoutOptions{}) },
		"count":     func(b storage.Bucket) storage.Bucket { return Count(b) },
	} {
		s := &scripted{put: func(_ int, src storage.Source) error {
			r, err := src.Open()
			if err != nil {
				return err
			}
			defer r.Close()
			seeker, ok := r.(io.Seeker)
			if _, plain := src.(source).Source.(unseekable); plain == ok {
				t.Errorf("%s: seeker %t", name, ok)
			}
			for range 2 {
				got, err := io.ReadAll(r)
				if err != nil || string(got) != "body" {
					t.Errorf("%s: %q, %v", name, got, err)
				}
				if !ok {
					break
				}
				if _, err := seeker.Seek(0, io.SeekStart); err != nil {
					t.Error(err)
				}
			}
			return nil
		}}
		for _, src := range []storage.Source{storage.Bytes("body"), unseekable{}} {
			if _, err := wrap(s).Put(t.Context(), "k", src, storage.PutOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

type unseekable struct{}

func (unseekable) Size() int64                  { return 4 }
func (unseekable) Open() (io.ReadCloser, error) { return stream("body", io.EOF), nil }
