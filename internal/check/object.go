package check

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"agent/internal/errs"
	"agent/internal/storage"
)

// probeRoot holds the objects of this package, apart from everything that a
// backup needs.
const probeRoot = "probe/"

const (
	probeSize = 1 << 10 // bytes
	creators  = 4       // of one object, at once
)

// hintPromise is for stores that replace what they were told to keep.
const hintPromise = "Do not use this store: two servers could overwrite each other's WAL and backups unnoticed, and nothing that this agent promises holds on it. If there is a proxy or gateway before the store, look whether it drops the header If-None-Match; else ask its vendor for conditional writes."

// object is what was put, and when.
type object struct {
	moment

	key  string
	body []byte
}

// body makes bytes that no other run has.
func body(what string) []byte {
	b := fmt.Appendf(nil, "This object was made by agent check (%s). It may be deleted.\n", what)
	for len(b) < probeSize {
		b = append(b, rand.Text()...)
	}
	return b[:probeSize]
}

// put creates the object that the other checks use.
func (p *probe) put(ctx context.Context) (done bool) {
	o := &object{key: p.folder + "object", body: body("put"), moment: moment{began: p.Now()}}
	_, err := p.place.Bucket.Put(ctx, o.key, storage.Bytes(o.body), storage.PutOptions{})
	o.ended = p.Now()
	if errors.Is(err, storage.ErrExists) {
		err = nil // a first try whose answer was lost; get compares
	}
	if err != nil {
		p.failStore(ctx, RepositoryPut, err)
		return false
	}
	p.object = o
	facts := Facts{PutMS: milliseconds(o.ended.Sub(o.began))}
	p.ok(RepositoryPut, p.place.Name, facts, "an object of %d bytes is durable after %v ms", len(o.body), facts[PutMS])
	return true
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(100*time.Microsecond).Microseconds()) / 1000
}

// reading gets the object, a part of it, and its description.
func (p *probe) reading(ctx context.Context) {
	began := p.Now()
	got, err := p.content(ctx, p.object.key)
	facts := Facts{GetMS: milliseconds(p.Now().Sub(began))}
	switch {
	case err != nil:
		p.failStore(ctx, RepositoryGet, err)
	case !bytes.Equal(got, p.object.body):
		p.differs(RepositoryGet, "what was read is not what was put")
	default:
		p.ok(RepositoryGet, p.place.Name, facts, "it was read back in %v ms", facts[GetMS])
	}

	off, n := len(p.object.body)/3, len(p.object.body)/3
	part, err := p.part(ctx, p.object.key, int64(off), int64(n))
	switch {
	case err != nil:
		p.failStore(ctx, RepositoryRange, err)
	case !bytes.Equal(part, p.object.body[off:off+n]):
		p.differs(RepositoryRange, "a part of an object is not what is there in the whole")
	default:
		p.ok(RepositoryRange, p.place.Name, nil, "a part of it was read")
	}

	info, err := p.place.Bucket.Stat(ctx, p.object.key)
	switch {
	case err != nil:
		p.failStore(ctx, RepositoryStat, err)
	case info.Size != int64(len(p.object.body)):
		p.differs(RepositoryStat, fmt.Sprintf("the store says that it has %d bytes and not %d", info.Size, len(p.object.body)))
	default:
		p.object.stamped = info.ModTime
		p.ok(RepositoryStat, p.place.Name, nil, "it was described")
	}
}

func (p *probe) differs(n Name, text string) {
	p.bad(n, p.place.Name, errs.Damaged, nil, "Do not trust this store. If there is a proxy or gateway before it, look at that.", "%s", text)
}

// content reads a small object whole.
func (p *probe) content(ctx context.Context, key string) ([]byte, error) {
	r, _, err := p.place.Bucket.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	return drain(r)
}

func (p *probe) part(ctx context.Context, key string, off, n int64) ([]byte, error) {
	r, err := p.place.Bucket.GetRange(ctx, key, off, n)
	if err != nil {
		return nil, err
	}
	return drain(r)
}

func drain(r io.ReadCloser) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, 2*probeSize))
	return b, errors.Join(err, r.Close())
}

// listing looks whether the object is listed at once.
func (p *probe) listing(ctx context.Context) {
	for info, err := range p.place.Bucket.List(ctx, p.folder, "") {
		if err != nil {
			p.failStore(ctx, RepositoryList, err)
			return
		}
		if info.Key == p.object.key {
			p.ok(RepositoryList, p.place.Name, nil, "it is listed")
			return
		}
	}
	p.bad(RepositoryList, p.place.Name, errs.Storage, nil, "Do not use this store: its listings come late or are not complete.",
		"an object that was put is not listed")
}

// conditional tries to replace the object, and then lets several create one at
// once.
func (p *probe) conditional(ctx context.Context) {
	_, err := p.place.Bucket.Put(ctx, p.object.key, storage.Bytes(body("a second put, which must be refused")), storage.PutOptions{})
	if err != nil && !errors.Is(err, storage.ErrExists) {
		p.failStore(ctx, RepositoryConditional, err)
		p.skip(RepositoryRace, p.place.Name, "see "+string(RepositoryConditional))
		return
	}
	refused := err != nil
	got, err := p.content(ctx, p.object.key)
	switch {
	case err != nil:
		p.failStore(ctx, RepositoryConditional, err)
	case !refused:
		p.bad(RepositoryConditional, p.place.Name, errs.Storage, nil, hintPromise, "the store ignores the condition that an object must be new: a second put replaced the first")
		p.skip(RepositoryRace, p.place.Name, "see "+string(RepositoryConditional))
		return
	case !bytes.Equal(got, p.object.body):
		p.bad(RepositoryConditional, p.place.Name, errs.Storage, nil, hintPromise, "the store refused a second put of an object, but took its bytes")
	default:
		p.ok(RepositoryConditional, p.place.Name, nil, "a second put with other bytes is refused, and the first bytes are kept")
	}
	p.race(ctx)
}

// race lets several create one object: one must win, and its bytes must be
// what is there.
func (p *probe) race(ctx context.Context) {
	key := p.folder + "race"
	bodies, results := make([][]byte, creators), make([]error, creators)
	var wait sync.WaitGroup
	for i := range creators {
		bodies[i] = body(fmt.Sprintf("creator %d", i))
		wait.Go(func() {
			_, results[i] = p.place.Bucket.Put(ctx, key, storage.Bytes(bodies[i]), storage.PutOptions{})
		})
	}
	wait.Wait()
	var winners []int
	for i, err := range results {
		switch {
		case err == nil:
			winners = append(winners, i)
		case !errors.Is(err, storage.ErrExists):
			p.failStore(ctx, RepositoryRace, err)
			return
		}
	}
	got, err := p.content(ctx, key)
	kept := slices.IndexFunc(bodies, func(b []byte) bool { return bytes.Equal(b, got) })
	switch {
	case err != nil:
		p.failStore(ctx, RepositoryRace, err)
	case len(winners) > 1:
		p.bad(RepositoryRace, p.place.Name, errs.Storage, nil, hintPromise, "%d of %d who created one object at once were told that they had", len(winners), creators)
	case kept < 0 || len(winners) == 1 && winners[0] != kept:
		p.bad(RepositoryRace, p.place.Name, errs.Storage, nil, hintPromise, "of %d who created one object at once, one was told that it had, but other bytes are there", creators)
	default:
		// No winner: the answer to its first try was lost, the second was told
		// that the object exists.
		p.ok(RepositoryRace, p.place.Name, nil, "of %d who create an object at once, one wins", creators)
	}
}

// delete removes the objects of this run. That it is denied is what a locked
// store is for.
func (p *probe) delete(ctx context.Context) {
	if p.object == nil {
		p.skipNoObject(RepositoryDelete)
		return
	}
	err := p.place.Bucket.Delete(ctx, p.object.key, p.folder+"race")
	switch {
	case errors.Is(err, storage.ErrPermission):
		p.ok(RepositoryDelete, p.place.Name, Facts{Deletable: false},
			"this user may not delete, as it should be where nothing may get lost: run retention elsewhere, and let a life-cycle rule remove what is below %s", probeRoot)
	case err != nil:
		p.failStore(ctx, RepositoryDelete, err)
	default:
		p.deleted(ctx)
	}
}

// deleted looks whether the object has gone.
func (p *probe) deleted(ctx context.Context) {
	_, err := p.place.Bucket.Stat(ctx, p.object.key)
	text := "objects can be deleted"
	if p.place.Immutable != nil {
		text = "objects can be deleted, which hides those that are locked; use other credentials for archiving to prevent that"
	}
	switch {
	case errors.Is(err, storage.ErrNotExist):
		p.ok(RepositoryDelete, p.place.Name, Facts{Deletable: true}, "%s", text)
	case err != nil:
		p.failStore(ctx, RepositoryDelete, err)
	default:
		p.warn(RepositoryDelete, p.place.Name, nil, "Retention will free no room there. Look for a proxy or gateway with a cache before the store.",
			"an object that was deleted is still there")
	}
}

const (
	leftoversAge  = 24 * time.Hour
	leftoversMost = 1000
)

// leftovers removes the objects of runs that were killed or could not delete.
func (p *probe) leftovers(ctx context.Context) {
	if p.object == nil {
		return
	}
	now := p.object.stamped // ages are by the store's clock
	if now.IsZero() {
		now = p.Now()
	}
	var old []string
	seen := 0
	for info, err := range p.place.Bucket.List(ctx, probeRoot, "") {
		if err != nil {
			return // repository.list tells what is wrong with listings
		}
		if seen++; seen > leftoversMost {
			break
		}
		if now.Sub(info.ModTime) > leftoversAge {
			old = append(old, info.Key)
		}
	}
	if len(old) == 0 {
		return
	}
	facts := Facts{Objects: len(old)}
	err := p.place.Bucket.Delete(ctx, old...)
	switch {
	case err == nil:
		p.ok(RepositoryLeftovers, p.place.Name, facts, "removed %d objects of earlier checks", len(old))
	case errors.Is(err, storage.ErrPermission):
		p.ok(RepositoryLeftovers, p.place.Name, facts, "%d objects of earlier checks are below %s, which this user may not delete, or not yet", len(old), probeRoot)
	default:
		p.warn(RepositoryLeftovers, p.place.Name, facts, "", "objects of earlier checks cannot be removed: %s", oneLine(err.Error()))
	}
}

// notes reads " (endpoint x, region y)".
func notes(all map[string]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		parts = append(parts, strings.ReplaceAll(name, "_", " ")+" "+oneLine(all[name]))
	}
	if parts == nil {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
