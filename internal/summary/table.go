package summary

import (
	"cmp"
	"iter"
	"maps"
	"math"
	"slices"

	"agent/internal/postgres"
	"agent/internal/postgres/xlog"
)

// NoLimit is the limit of a fork that was neither made nor cut.
const NoLimit uint32 = math.MaxUint32

// Key names one fork of a relation.
type Key struct {
	xlog.Locator
	Fork postgres.Fork
}

// Compare orders keys by tablespace, database, relation and fork.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Tablespace, o.Tablespace), cmp.Compare(k.Database, o.Database),
		cmp.Compare(k.Relation, o.Relation), cmp.Compare(k.Fork, o.Fork))
}

// databaseKey stands for all files of a database in a tablespace, as in
// PostgreSQL's own summaries.
func databaseKey(tablespace, database uint32) Key {
	return Key{Locator: xlog.Locator{Tablespace: tablespace, Database: database}}
}

// Table says of forks which blocks a stretch of WAL touches, and what their
// smallest length in it was, the limit: blocks from there on may differ
// without being named. It is filled in the order of the WAL. Free space maps
// are not in it: WAL tells too little of them, so they are always read whole.
//
// The rules are those of PostgreSQL 17 (src/common/blkreftable.c). One goroutine
// at a time may use it.
type Table struct {
	forks  map[Key]*fork
	recent [256]*fork // by a hash of the key
}

type fork struct {
	key    Key
	limit  uint32
	blocks blockSet
}

// NewTable makes an empty table.
func NewTable() *Table { return &Table{forks: make(map[Key]*fork)} }

// fork finds or makes an entry.
func (t *Table) fork(k Key) *fork {
	slot := &t.recent[(k.Relation*0x9E3779B1+uint32(k.Fork)*0x85EBCA6B)>>24]
	if *slot != nil && (*slot).key == k {
		return *slot
	}
	f := t.forks[k]
	if f == nil {
		f = &fork{key: k, limit: NoLimit}
		t.forks[k] = f
	}
	*slot = f
	return f
}

// Touch adds a block.
func (t *Table) Touch(k Key, block uint32) {
	if k.Fork != postgres.FSMFork {
		t.fork(k).blocks.add(block)
	}
}

// Cut says that the fork was made or cut to so many blocks. If it was never
// known to be as short before, what was touched behind them does not count any
// more (BlockRefTableEntrySetLimitBlock).
func (t *Table) Cut(k Key, blocks uint32) {
	if k.Fork != postgres.FSMFork {
		t.fork(k).cut(blocks)
	}
}

func (f *fork) cut(blocks uint32) {
	if blocks < f.limit {
		f.limit = blocks
		f.blocks.limit(blocks)
	}
}

// CutDatabase says that all files of a database in a tablespace were made or
// removed.
func (t *Table) CutDatabase(tablespace, database uint32) {
	t.Cut(databaseKey(tablespace, database), 0)
}

// Join adds what came after. Limits, and blocks in front of them, are then as
// if all had been filled into one table; of those behind, which may have changed
// anyway, some that were cut off again may be missing.
func (t *Table) Join(later *Table) {
	for k, l := range later.forks {
		f := t.fork(k)
		f.cut(l.limit)
		for block := range l.blocks.all(0, math.MaxUint32) {
			f.blocks.add(block)
		}
	}
}

// Limit is the smallest length that the fork is known to have had, in blocks,
// or NoLimit: all blocks from there on may have changed.
func (t *Table) Limit(k Key) uint32 {
	if f := t.forks[k]; f != nil {
		return f.limit
	}
	return NoLimit
}

// Blocks gives the touched blocks in [from, to), ascending: of a file of a
// relation, for one.
func (t *Table) Blocks(k Key, from, to uint32) iter.Seq[uint32] {
	f := t.forks[k]
	if f == nil {
		return func(func(uint32) bool) {}
	}
	return f.blocks.all(from, to)
}

// WholeDatabase tells whether all files of a database in a tablespace may have
// changed: it was made by copying, moved or removed.
func (t *Table) WholeDatabase(tablespace, database uint32) bool {
	return t.Limit(databaseKey(tablespace, database)) == 0
}

// Keys are the forks of the table in their order. A key with relation 0 stands
// for a database: see WholeDatabase.
func (t *Table) Keys() []Key {
	return slices.SortedFunc(maps.Keys(t.forks), Key.Compare)
}
