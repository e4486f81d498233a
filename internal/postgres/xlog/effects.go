package xlog

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"agent/internal/postgres"
)

// Effects is told what a record does beyond the blocks that it names.
type Effects interface {
	// Limit: the fork was made, or cut, to so many blocks; 0 also when it was
	// removed.
	Limit(rel Locator, fork postgres.Fork, blocks uint32)
	// Database: the files of a database in a tablespace were made by copying,
	// or removed.
	Database(tablespace, database uint32)
	// Minimal: WAL was written with wal_level=minimal, which leaves changes out.
	Minimal()
	// Commit: a transaction was committed, at microseconds since 1970 UTC.
	Commit(at postgres.LSN, micros int64)
	// RestorePoint was made by pg_create_restore_point, at microseconds since
	// 1970 UTC.
	RestorePoint(at postgres.LSN, name string, micros int64)
}

// Operations of the resource managers, the upper half of Info
// (src/include/catalog/pg_control.h, access/xact.h, catalog/storage_xlog.h and
// commands/dbcommands_xlog.h).
const (
	opCheckpointShutdown = 0x00
	opSwitch             = 0x40
	opParameterChange    = 0x60
	opRestorePoint       = 0x70
	opEndOfRecovery      = 0x90
	opCheckpointRedo     = 0xE0 // 17

	opMask           = 0x70 // of a transaction's record
	opHasInfo        = 0x80
	opCommit         = 0x00
	opAbort          = 0x20
	opCommitPrepared = 0x30
	opAbortPrepared  = 0x40

	opStorageCreate   = 0x10
	opStorageTruncate = 0x20

	opDatabaseCopy  = 0x00
	opDatabaseDrop  = 0x20 // 0x10 until 14
	opDatabaseWrite = 0x10 // 15: created by WAL
)

// epoch2000 is PostgreSQL's epoch, 2000-01-01 UTC, in microseconds since 1970.
const epoch2000 = 946_684_800_000_000

// vmPerPage is how many heap pages one page of a visibility map describes:
// two bits each in 8192 bytes without the 24 of the header
// (HEAPBLOCKS_PER_PAGE in src/backend/access/heap/visibilitymap.c).
const vmPerPage = (8192 - 24) * 4

// Visit tells e what r does, which may be nothing. An error says that this
// could not be understood.
func Visit(r *Record, major int, e Effects) error {
	var visit func(*Record, int, Effects) error
	switch r.RM {
	case RMXLOG:
		visit = visitXLOG
	case RMXact:
		visit = visitXact
	case RMStorage:
		visit = visitStorage
	case RMDatabase:
		visit = visitDatabase
	default:
		return nil
	}
	if r.Cut {
		return fmt.Errorf("record at %s: %w: it is %d bytes long", r.LSN, errBody, r.Length)
	}
	if err := visit(r, major, e); err != nil {
		return fmt.Errorf("record at %s: %w", r.LSN, err)
	}
	return nil
}

// data reads main data. After its end it gives zeros and an error.
type data struct {
	b     []byte
	short bool
}

func (d *data) take(n int) []byte {
	if n > len(d.b) {
		d.short = true
		d.b = nil
		return make([]byte, min(n, 64))
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *data) uint32() uint32 { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *data) int64() int64   { return int64(binary.LittleEndian.Uint64(d.take(8))) }

func (d *data) locator() Locator { return Locator{d.uint32(), d.uint32(), d.uint32()} }

func (d *data) err() error {
	if d.short {
		return badBody("its data is too short")
	}
	return nil
}

// visitXLOG: the wal_level stands in CheckPoint from 17 on, in
// xl_parameter_change, in xl_end_of_recovery from 17 on, and in the record of a
// redo point.
func visitXLOG(r *Record, major int, e Effects) error {
	at := -1
	switch r.Op() {
	case opCheckpointShutdown:
		if major >= 17 {
			at = 20
		}
	case opParameterChange:
		at = 20
	case opEndOfRecovery:
		if major >= 17 {
			at = 16
		}
	case opCheckpointRedo:
		if major >= 17 {
			at = 0
		}
	case opRestorePoint:
		d := data{b: r.Main}
		micros := d.int64() + epoch2000
		name, _, _ := bytes.Cut(d.take(min(len(d.b), 64)), []byte{0})
		if d.err() == nil {
			e.RestorePoint(r.LSN, string(name), micros)
		}
		return d.err()
	}
	if at < 0 {
		return nil
	}
	d := data{b: r.Main}
	d.take(at)
	if level := d.uint32(); level == 0 && !d.short {
		e.Minimal()
	}
	return d.err()
}

// visitXact reads the relations that a transaction's end removes: those that it
// dropped, or, rolled back, created (xl_xact_commit and xl_xact_abort, and
// ParseCommitRecord in src/backend/access/rmgrdesc/xactdesc.c).
func visitXact(r *Record, _ int, e Effects) error {
	op := r.Info & opMask
	committed := op == opCommit || op == opCommitPrepared
	if !committed && op != opAbort && op != opAbortPrepared {
		return nil
	}
	d := data{b: r.Main}
	micros := d.int64() + epoch2000
	var info uint32
	if r.Info&opHasInfo != 0 {
		info = d.uint32()
	}
	const hasDatabase, hasSubxacts, hasRelations = 1, 2, 4
	if info&hasDatabase != 0 {
		d.take(8)
	}
	if info&hasSubxacts != 0 {
		if n := d.uint32(); uint64(n)*4 <= uint64(len(d.b)) {
			d.take(int(n) * 4)
		} else {
			d.short = true
		}
	}
	if info&hasRelations != 0 {
		for n := d.uint32(); n > 0 && !d.short; n-- {
			if rel := d.locator(); !d.short {
				for _, fork := range []postgres.Fork{postgres.MainFork, postgres.VMFork, postgres.InitFork} {
					e.Limit(rel, fork, 0)
				}
			}
		}
	}
	if committed && !d.short {
		e.Commit(r.LSN, micros)
	}
	return d.err()
}

// visitStorage reads xl_smgr_create and xl_smgr_truncate.
func visitStorage(r *Record, _ int, e Effects) error {
	d := data{b: r.Main}
	switch r.Op() {
	case opStorageCreate:
		rel, fork := d.locator(), d.uint32()
		if !d.short && fork > uint32(postgres.InitFork) {
			return badBody("fork %d", fork)
		}
		if !d.short {
			e.Limit(rel, postgres.Fork(fork), 0)
		}
	case opStorageTruncate:
		const heap, vm = 1, 2
		blocks, rel, flags := d.uint32(), d.locator(), d.uint32()
		if !d.short && flags&heap != 0 {
			e.Limit(rel, postgres.MainFork, blocks)
		}
		if !d.short && flags&vm != 0 {
			e.Limit(rel, postgres.VMFork, uint32((uint64(blocks)+vmPerPage-1)/vmPerPage))
		}
	default:
		if r.Info&SpecialRelUpdate != 0 {
			return badBody("storage operation %02X", r.Op())
		}
	}
	return d.err()
}

// visitDatabase reads xl_dbase_create_rec (xl_dbase_create_file_copy_rec and
// xl_dbase_create_wal_log_rec from 15 on) and xl_dbase_drop_rec.
func visitDatabase(r *Record, major int, e Effects) error {
	drop := uint8(opDatabaseDrop)
	if major < 15 {
		drop = 0x10
	}
	d := data{b: r.Main}
	switch op := r.Op(); {
	case op == drop:
		database := d.uint32()
		for n := d.uint32(); n > 0 && !d.short; n-- {
			if tablespace := d.uint32(); !d.short {
				e.Database(tablespace, database)
			}
		}
	case op == opDatabaseCopy || op == opDatabaseWrite:
		database, tablespace := d.uint32(), d.uint32()
		if !d.short {
			e.Database(tablespace, database)
		}
	default:
		return badBody("database operation %02X", op)
	}
	return d.err()
}
