package repo

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"agent/internal/errs"
	"agent/internal/postgres"
	"agent/internal/storage"
)

// StreamRange is a stretch of a segment that is not finished yet: the bytes of
// one timeline's WAL from Start to before End, all in one segment.
type StreamRange struct {
	Timeline   postgres.Timeline
	Start, End postgres.LSN
}

// String names the range for messages.
func (g StreamRange) String() string {
	return fmt.Sprintf("%s to %s of timeline %d", g.Start, g.End, uint32(g.Timeline))
}

// len is the number of raw bytes.
func (g StreamRange) len() int64 { return int64(g.End - g.Start) }

// within reports whether the range is a part of the segment, and not empty.
func (g StreamRange) within(seg postgres.Segment, size postgres.SegmentSize) bool {
	return g.Timeline == seg.Timeline && g.Start >= seg.Start(size) && g.Start < g.End && g.End <= seg.End(size)
}

func (c ClusterID) streamKey(g StreamRange) string {
	return fmt.Sprintf("%s%016X-%016X", c.streamPrefix(g.Timeline), uint64(g.Start), uint64(g.End))
}

// parseStreamName reads the last component of a range's key. Only the one way
// in which it is written is taken.
func parseStreamName(t postgres.Timeline, name string) (StreamRange, bool) {
	first, second, _ := strings.Cut(name, "-")
	start, err := strconv.ParseUint(first, 16, 64)
	end, err2 := strconv.ParseUint(second, 16, 64)
	g := StreamRange{Timeline: t, Start: postgres.LSN(start), End: postgres.LSN(end)}
	ok := err == nil && err2 == nil && start < end && name == fmt.Sprintf("%016X-%016X", start, end)
	return g, ok
}

// PutStream stores a range of an unfinished segment, from src, which has just
// these bytes. When it returns without error the range is durable in every
// required place. The same bytes again are success, other bytes a Conflict.
func (r *Repository) PutStream(ctx context.Context, cluster ClusterID, g StreamRange, size postgres.SegmentSize, src io.ReadSeeker) (err error) {
	seg := postgres.SegmentOf(g.Timeline, g.Start, size)
	if !g.within(seg, size) {
		return fmt.Errorf("store range %s: it is not within one segment", g)
	}
	f, err := postgres.ParseWALFile(seg.Name(size))
	if err != nil {
		return err
	}
	b := r.newWALBuilder(cluster, f, passed{})
	body, err := b.fresh(src, g.len())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	if _, err = r.putHashed(ctx, cluster.streamKey(g), b.sum, body); err != nil {
		return fmt.Errorf("store range %s: %w", g, err)
	}
	return nil
}

// StreamRanges lists the stored ranges of a segment by their start, in whatever
// place they are. It fails if a required place does not answer.
func (r *Repository) StreamRanges(ctx context.Context, cluster ClusterID, seg postgres.Segment, size postgres.SegmentSize) ([]StreamRange, error) {
	var all []StreamRange
	prefix := cluster.streamPrefix(seg.Timeline)
	err := r.surely(func(p *place) error {
		for info, err := range p.Bucket.List(ctx, prefix, fmt.Sprintf("%s%016X", prefix, uint64(seg.Start(size)))) {
			if err != nil {
				return fmt.Errorf("list streamed WAL: %w", err)
			}
			g, ok := parseStreamName(seg.Timeline, strings.TrimPrefix(info.Key, prefix))
			if ok && g.Start >= seg.End(size) {
				break
			}
			if ok && g.within(seg, size) {
				all = append(all, g)
			}
		}
		return nil
	})
	slices.SortFunc(all, func(a, b StreamRange) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.End, b.End))
	})
	return slices.Compact(all), err
}

// StreamChain chooses from ranges, which are sorted by their start, those that
// cover the WAL from start on without a hole, each as far as possible, and
// says where they end: at start if none begins there.
func StreamChain(ranges []StreamRange, start postgres.LSN) (chain []StreamRange, end postgres.LSN) {
	end = start
	for i := 0; i < len(ranges); {
		best := StreamRange{End: end}
		for ; i < len(ranges) && ranges[i].Start <= end; i++ {
			if ranges[i].End > best.End {
				best = ranges[i]
			}
		}
		if best.End == end {
			break
		}
		chain, end = append(chain, best), best.End
	}
	return chain, end
}

// ReadStreamed puts a segment together from ranges of it that are stored and lets use take
// its bytes up to reach, as far as there is no hole. That no range begins
// with the segment is storage.ErrNotExist. Ranges that overlap must agree, else
// it is a Conflict: two servers wrote one timeline. What does not fit into
// memory is kept in the spool directory meanwhile.
func (r *Repository) ReadStreamed(ctx context.Context, cluster ClusterID, seg postgres.Segment, size postgres.SegmentSize,
	ranges []StreamRange, use func(body io.Reader, reach postgres.LSN) error,
) (err error) {
	start := seg.Start(size)
	_, reach := StreamChain(ranges, start)
	if reach == start {
		return &storage.Error{Op: "list", Bucket: r.String(), Key: cluster.streamPrefix(seg.Timeline), Err: storage.ErrNotExist}
	}
	a := &assembly{repo: r, cluster: cluster, start: start, spool: &spool{dir: r.spoolDir}}
	defer func() { err = errors.Join(err, a.spool.Close()) }()
	if err := a.fill(ctx, ranges, reach); err != nil {
		return err
	}
	if err := a.agrees(ctx, ranges, reach); err != nil {
		return err
	}
	have := io.NewSectionReader(a.spool.readerAt(), 0, int64(reach-start))
	return use(have, reach)
}

// assembly is a segment that is put together.
type assembly struct {
	repo    *Repository
	cluster ClusterID
	start   postgres.LSN
	spool   *spool // its bytes from start on
	read    []StreamRange
}

// fill reads ranges until all bytes before reach are there. What of one that is
// damaged is in others is taken from these.
func (a *assembly) fill(ctx context.Context, ranges []StreamRange, reach postgres.LSN) error {
	var damage error
	left := slices.Clone(ranges)
	for at := a.at(); at < reach; at = a.at() {
		chain, _ := StreamChain(left, at)
		if len(chain) == 0 {
			return damage
		}
		g := chain[0]
		err := a.add(ctx, g)
		if errs.KindOf(err) == errs.Damaged {
			a.repo.log.Warn("a range of streamed WAL is damaged; others that hold its bytes are looked for", "range", g.String(), "error", err.Error())
			damage = first(damage, err)
		} else if err != nil {
			return err
		}
		left = slices.DeleteFunc(left, func(other StreamRange) bool { return other == g })
	}
	return nil
}

func (a *assembly) at() postgres.LSN { return a.start + postgres.LSN(a.spool.Size()) }

// add reads one range: what is there of it already must be the same.
func (a *assembly) add(ctx context.Context, g StreamRange) error {
	key := a.cluster.streamKey(g)
	err := a.repo.read(ctx, key, expected, func(s source) error {
		o, err := s.openObject(ctx, key)
		if err != nil {
			return err
		}
		offset := int64(g.Start - a.start)
		if o.want == nil {
			err = s.damaged(errNoHash, key)
		} else {
			err = EachChunk(o, func(raw []byte) error {
				if offset+int64(len(raw)) > int64(g.End-a.start) {
					return s.damaged(errors.New("it is longer than its key says"), key)
				}
				err := a.join(raw, offset, g)
				offset += int64(len(raw))
				return err
			})
		}
		if err == nil && offset != int64(g.End-a.start) {
			err = s.damaged(errors.New("it is shorter than its key says"), key)
		}
		return errors.Join(err, o.Close())
	})
	if err != nil {
		return missing(err, key, a.repo.String())
	}
	a.read = append(a.read, g)
	return nil
}

// join compares what is there at the offset, and adds what is not.
func (a *assembly) join(raw []byte, offset int64, g StreamRange) error {
	n := min(max(a.spool.Size()-offset, 0), int64(len(raw)))
	have := make([]byte, n)
	if _, err := a.spool.readerAt().ReadAt(have, offset); n > 0 && err != nil && !errors.Is(err, io.EOF) {
		return stateError(err)
	}
	if !bytes.Equal(have, raw[:n]) {
		return a.conflict(g)
	}
	_, err := a.spool.Write(raw[n:])
	return err
}

func (a *assembly) conflict(g StreamRange) error {
	return errs.New(errs.Conflict,
		"Two servers have streamed one timeline into this repository, which happens when a server is cloned or started again after another was promoted. Find out whose WAL is the right one and remove the other's objects below stream/ by hand.",
		"the streamed WAL %s in %s holds other bytes than other ranges of the same segment", g, a.repo)
}

// headsAtOnce is how many heads of ranges are read at a time.
const headsAtOnce = 8

// agrees compares the hashes of the ranges that were not needed with those of
// the same bytes of the others. It reads their heads alone.
func (a *assembly) agrees(ctx context.Context, ranges []StreamRange, reach postgres.LSN) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(headsAtOnce)
	at := a.spool.readerAt()
	for _, g := range ranges {
		if g.End > reach || slices.Contains(a.read, g) {
			continue
		}
		work.Go(func() error {
			want, err := a.repo.streamHash(ctx, a.cluster.streamKey(g))
			if err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				// Its bytes are not needed.
				a.repo.log.Warn("a range of streamed WAL that is not needed cannot be read", "range", g.String(), "error", err.Error())
				return nil
			}
			sum := sha256.New()
			if _, err := io.Copy(sum, io.NewSectionReader(at, int64(g.Start-a.start), g.len())); err != nil {
				return stateError(err)
			}
			if [32]byte(sum.Sum(nil)) != want {
				return a.conflict(g)
			}
			return nil
		})
	}
	return work.Wait()
}

// streamHash is the hash that an object carries of its raw bytes.
func (r *Repository) streamHash(ctx context.Context, key string) (sum [32]byte, err error) {
	err = r.read(ctx, key, expected, func(s source) error {
		body, _, err := s.get(ctx, key)
		if err != nil {
			return err
		}
		head, _, err := peek(body)
		if err = errors.Join(err, body.Close()); err != nil {
			return err
		}
		found, ok, err := headHash(head)
		if err == nil && !ok {
			err = errNoHash
		}
		if err != nil {
			return s.damaged(err, key)
		}
		sum = found
		return nil
	})
	return sum, err
}

// LastWAL is the last whole segment of a timeline, of those that begin before
// the given LSN, that each required place has; ok is false if one has none.
func (r *Repository) LastWAL(ctx context.Context, cluster ClusterID, t postgres.Timeline, before postgres.LSN, size postgres.SegmentSize) (last postgres.Segment, ok bool, err error) {
	for i, p := range r.required() {
		if err := p.err(); err != nil {
			return last, false, err
		}
		found, there, err := lastSegment(ctx, p, cluster, t, before, size)
		if err != nil || !there {
			return last, false, err
		}
		if i == 0 || found.Number < last.Number {
			last = found
		}
	}
	return last, true, nil
}

// LastStreamed is the last segment of a timeline of which ranges are stored that
// begin before the given LSN. It lists all of the timeline's.
func (r *Repository) LastStreamed(ctx context.Context, cluster ClusterID, t postgres.Timeline, before postgres.LSN, size postgres.SegmentSize) (last postgres.Segment, ok bool, err error) {
	prefix := cluster.streamPrefix(t)
	err = r.surely(func(p *place) error {
		for info, err := range p.Bucket.List(ctx, prefix, "") {
			if err != nil {
				return fmt.Errorf("list streamed WAL: %w", err)
			}
			g, parsed := parseStreamName(t, strings.TrimPrefix(info.Key, prefix))
			if parsed && g.Start < before {
				seg := postgres.SegmentOf(t, g.Start, size)
				seg.Number = max(seg.Number, last.Number)
				last, ok = seg, true
			}
		}
		return nil
	})
	return last, ok, err
}

// lastSegment lists the folders of a timeline, each of 4 GiB of WAL, and then
// the last that has a segment.
func lastSegment(ctx context.Context, p *place, cluster ClusterID, t postgres.Timeline, before postgres.LSN, size postgres.SegmentSize) (last postgres.Segment, ok bool, err error) {
	var folders []string
	for name, err := range p.Bucket.Folders(ctx, cluster.walPrefix()) {
		if err != nil {
			return last, false, fmt.Errorf("list WAL: %w", err)
		}
		if strings.HasPrefix(name, t.String()) {
			folders = append(folders, name)
		}
	}
	slices.Sort(folders)
	for _, name := range slices.Backward(folders) {
		prefix := cluster.walPrefix() + name + "/"
		for info, err := range p.Bucket.List(ctx, prefix, "") {
			if err != nil {
				return last, false, fmt.Errorf("list WAL: %w", err)
			}
			seg, err := postgres.ParseSegment(strings.TrimPrefix(info.Key, prefix), size)
			if err == nil && seg.Timeline == t && seg.Start(size) < before && (!ok || seg.Number > last.Number) {
				last, ok = seg, true
			}
		}
		if ok {
			return last, true, nil
		}
	}
	return last, false, nil
}
