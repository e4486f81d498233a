package xlog

import (
	"encoding/binary"
	"fmt"

	"agent/internal/postgres"
)

// Decoder finds the records in the bytes of one segment file, which are
// written to it in their order in chunks of any length; whole pages are
// cheapest. Each record that lies wholly inside the segment is handed to a
// function once its checksum and its xl_prev are proved. Of the records that
// cross the segment's edges the pieces are kept.
//
// What is wrong is told by Result, not by Write: whether it is an error
// depends on the file. Memory is bounded by MaxKept for each of the record at
// hand and the first piece. One goroutine at a time may use it.
type Decoder struct {
	emit func(*Record)

	page   []byte // the page at hand, while it is incomplete
	off    int64  // of the page that comes next, in bytes
	size   int64  // of the segment; 0 until the first page was understood
	done   bool   // what follows is not looked at
	inHead bool   // the record at hand began before the segment
	rec    assembly
	record Record
	res    Result
}

// NewDecoder makes a decoder that hands records to emit. emit must not keep
// them.
func NewDecoder(emit func(*Record)) *Decoder { return &Decoder{emit: emit} }

// Write takes the next bytes of the segment. It never fails.
func (d *Decoder) Write(p []byte) (int, error) {
	n := len(p)
	if len(d.page) > 0 {
		k := min(postgres.WALBlockSize-len(d.page), len(p))
		d.page = append(d.page, p[:k]...)
		p = p[k:]
		if len(d.page) < postgres.WALBlockSize {
			return n, nil
		}
		d.next(d.page)
		d.page = d.page[:0]
	}
	for ; len(p) >= postgres.WALBlockSize; p = p[postgres.WALBlockSize:] {
		d.next(p[:postgres.WALBlockSize])
	}
	if len(p) > 0 {
		if d.page == nil {
			d.page = make([]byte, 0, postgres.WALBlockSize)
		}
		d.page = append(d.page, p...)
	}
	return n, nil
}

// next decodes a whole page.
func (d *Decoder) next(page []byte) {
	off := d.off
	d.off += postgres.WALBlockSize
	if d.done {
		return
	}
	h, err := postgres.ParsePageHeader(page)
	switch {
	case err != nil:
		d.stop(Unknown, err.Error())
	case off == 0:
		d.first(h)
	default:
		d.fits(h, d.res.Header.Addr+postgres.LSN(off))
	}
	if d.done {
		return
	}
	pos, ok := d.continued(h, page)
	if !ok {
		return
	}
	d.records(page, pos)
	if d.off == d.size && !d.done {
		d.finish()
	}
}

// first understands the long header, which says what the segment is.
func (d *Decoder) first(h postgres.PageHeader) {
	major, known := postgres.MagicMajor(h.Magic)
	switch {
	case !known:
		d.stop(Unknown, fmt.Sprintf("its page format %04X is of no PostgreSQL from %d to %d", h.Magic, postgres.MinMajor, postgres.MaxMajor))
	case h.Flags&postgres.PageLongHeader == 0, h.BlockSize != postgres.WALBlockSize, !h.SegmentSize.Valid(), h.Addr.Offset(h.SegmentSize) != 0:
		d.stop(Unknown, "its first page has no header of a segment")
	default:
		d.res.Header, d.res.Major, d.res.End = h, major, h.Addr
		d.size, d.res.Timeline = int64(h.SegmentSize), h.Timeline
	}
}

// fits stops at a page that does not follow the one before.
func (d *Decoder) fits(h postgres.PageHeader, want postgres.LSN) {
	switch {
	case h.Empty():
		d.stop(NotOwn, fmt.Sprintf("the page at %s is empty", want))
	case h.Magic != d.res.Header.Magic || h.Addr != want || h.Flags&postgres.PageLongHeader != 0:
		d.stop(NotOwn, fmt.Sprintf("the page at %s is another one, with the address %s", want, h.Addr))
	case h.Timeline < d.res.Timeline:
		d.stop(NotOwn, fmt.Sprintf("the page at %s is of timeline %d, after one of timeline %d", want, h.Timeline, d.res.Timeline))
	default:
		d.res.Timeline = h.Timeline
	}
}

// continued takes what the page holds of a record that began before it, and
// says where the next one begins.
func (d *Decoder) continued(h postgres.PageHeader, page []byte) (pos int, ok bool) {
	pos = h.Size()
	atStart := h.Addr == d.res.Header.Addr
	switch {
	case h.Flags&postgres.PageOverwriteContRecord != 0:
		// A crash lost the rest of the record; another follows in its place.
		if d.inHead || atStart {
			d.res.Overwrite = true
			d.res.Head = Piece{}
		}
		d.inHead = false
		d.rec.begin(0, 0)
		return pos, true
	case h.Flags&postgres.PageContRecord == 0:
		if d.rec.missing() > 0 {
			d.stop(NotOwn, fmt.Sprintf("the record at %s does not go on at %s", d.rec.start, h.Addr))
		}
		return pos, !d.done
	case atStart && h.RemLen > 0 && h.RemLen <= maxRecord:
		d.inHead = true
		d.rec.begin(h.Addr, h.RemLen)
	case h.RemLen == 0 || h.RemLen != d.rec.missing():
		d.stop(NotOwn, fmt.Sprintf("at %s there are %d bytes left of a record of which %d are", h.Addr, h.RemLen, d.rec.missing()))
		return pos, false
	}
	n := min(postgres.WALBlockSize-pos, int(d.rec.missing()))
	d.rec.add(page[pos : pos+n])
	if d.rec.missing() > 0 {
		return postgres.WALBlockSize, true
	}
	if d.inHead {
		d.inHead = false
		d.headEnds()
	} else {
		d.assembled()
	}
	pos = align(pos + n)
	if !d.done {
		d.res.End = h.Addr + postgres.LSN(pos)
	}
	return pos, !d.done
}

// align rounds up to where a record may begin (MAXALIGN).
func align(pos int) int { return (pos + 7) &^ 7 }

// headEnds keeps the piece of the record that began before the segment. A
// switch may lie over the edge: then its rest is all there is.
func (d *Decoder) headEnds() {
	d.res.Head = d.piece()
	if b := d.res.Head.Bytes; (len(b) == 8 || len(b) == 16) && isSwitch(b[len(b)-8], RMID(b[len(b)-7])) {
		d.res.switchHead = true
	}
}

// piece copies what was put together until now.
func (d *Decoder) piece() Piece {
	return Piece{Bytes: append([]byte(nil), d.rec.buf...), Length: d.rec.have, Left: d.rec.missing()}
}

func isSwitch(info uint8, rm RMID) bool { return rm == RMXLOG && info&0xF0 == opSwitch }

// records goes through the records that begin on the page.
func (d *Decoder) records(page []byte, pos int) {
	addr := d.res.Header.Addr + postgres.LSN(d.off-postgres.WALBlockSize)
	for pos < len(page) {
		lsn := addr + postgres.LSN(pos)
		total := binary.LittleEndian.Uint32(page[pos:])
		switch {
		case total == 0:
			d.tail(lsn, "there are zeros at "+lsn.String())
			return
		case total < recordHeader || total > maxRecord:
			d.tail(lsn, fmt.Sprintf("the record at %s would be %d bytes long", lsn, total))
			return
		case uint64(total) > uint64(len(page)-pos):
			d.begins(lsn, total, page[pos:])
			return
		}
		rec := page[pos : pos+int(total)]
		d.record.header(lsn, rec)
		if !d.chained() || recordCRC(rec) != crcOf(rec) {
			d.tail(lsn, "the record at "+lsn.String()+" is none")
			return
		}
		d.accept(rec)
		if d.done {
			return
		}
		pos = align(pos + int(total))
		d.res.End = addr + postgres.LSN(pos)
	}
}

// begins takes the first piece of a record that goes over the page's end. Its
// header, where it is whole, must fit, so that garbage is not taken for it.
func (d *Decoder) begins(lsn postgres.LSN, total uint32, b []byte) {
	if len(b) >= recordHeader {
		if d.record.header(lsn, b); !d.chained() {
			d.tail(lsn, "the record at "+lsn.String()+" is none")
			return
		}
	}
	d.rec.begin(lsn, total)
	d.rec.add(b)
}

// chained tells whether the record at hand names the one before it.
func (d *Decoder) chained() bool {
	if d.res.Last != 0 {
		return d.record.Prev == d.res.Last
	}
	return d.record.Prev < d.record.LSN
}

// assembled judges a record that was put together.
func (d *Decoder) assembled() {
	d.record.header(d.rec.start, d.rec.buf)
	if !d.chained() || !d.rec.valid() {
		d.stop(NotOwn, "the record at "+d.rec.start.String()+" is none")
		return
	}
	d.accept(d.rec.buf)
}

// accept hands a proved record on. rec is as much of it as is kept.
func (d *Decoder) accept(rec []byte) {
	r := &d.record
	if d.res.Last == 0 {
		d.res.First, d.res.FirstPrev = r.LSN, r.Prev
	}
	d.res.Last = r.LSN
	d.res.Records++
	if err := r.fragments(rec, d.res.Major); err == nil {
		d.emit(r)
	} else if d.res.Undecoded == nil {
		d.res.Undecoded = fmt.Errorf("record at %s: %w", r.LSN, err)
	}
	if isSwitch(r.Info, r.RM) {
		d.stop(AfterSwitch, "")
	}
}

// tail stops where no record is although one could be.
func (d *Decoder) tail(lsn postgres.LSN, reason string) {
	if d.res.switchHead && d.res.Last == 0 && lsn == d.res.End {
		d.stop(AfterSwitch, "")
		return
	}
	d.stop(NotOwn, reason)
}

// stop ends decoding: what follows is not looked at.
func (d *Decoder) stop(e Ending, reason string) {
	d.done, d.res.Ending, d.res.Reason = true, e, reason
	d.rec.begin(0, 0)
	d.inHead = false
}

// finish looks at what is open at the end of the segment.
func (d *Decoder) finish() {
	d.done, d.res.Ending = true, Full
	switch {
	case d.inHead:
		d.res.Ending, d.res.Reason = Unknown, "one record covers it"
		d.res.Head = d.piece()
	case d.rec.missing() > 0:
		d.res.Tail, d.res.TailStart = d.piece(), d.rec.start
	default:
		d.res.End = d.res.Header.Addr + postgres.LSN(d.size)
	}
}

// Result tells what the segment is, once all of it was written. Nothing is
// decoded after it.
func (d *Decoder) Result() *Result {
	seen := d.off + int64(len(d.page))
	switch {
	case d.off == 0:
		d.stop(Unknown, "it has no whole page")
	case d.size != 0 && seen != d.size:
		d.stop(Unknown, fmt.Sprintf("it has %d bytes instead of %d", seen, d.size))
	}
	return &d.res
}

// Major is the PostgreSQL major whose WAL this is; 0 until that is known.
func (d *Decoder) Major() int { return d.res.Major }
