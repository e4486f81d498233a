package summary

import (
	"agent/internal/postgres"
	"agent/internal/postgres/xlog"
)

// collector applies records to a table.
type collector struct {
	table   *Table
	doubts  Doubts
	newest  Commit
	points  []Commit
	problem error // why there is NotUnderstood
}

// apply takes the effects of the next record.
func (c *collector) apply(r *xlog.Record, major int) {
	if !r.RM.Known() && r.Info&xlog.SpecialRelUpdate != 0 {
		c.doubts |= Special
	}
	for i := range r.Blocks {
		ref := &r.Blocks[i]
		c.table.Touch(Key{ref.Locator, ref.Fork}, ref.Block)
	}
	if err := xlog.Visit(r, major, c); err != nil {
		c.fail(err)
	}
}

func (c *collector) fail(err error) {
	c.doubts |= NotUnderstood
	if c.problem == nil {
		c.problem = err
	}
}

// Limit is a call of xlog.Visit.
func (c *collector) Limit(rel xlog.Locator, fork postgres.Fork, blocks uint32) {
	c.table.Cut(Key{rel, fork}, blocks)
}

// Database is a call of xlog.Visit.
func (c *collector) Database(tablespace, database uint32) { c.table.CutDatabase(tablespace, database) }

// Minimal is a call of xlog.Visit.
func (c *collector) Minimal() { c.doubts |= Minimal }

// Commit is a call of xlog.Visit.
func (c *collector) Commit(at postgres.LSN, micros int64) {
	c.commit(Commit{LSN: at, Micros: micros})
}

func (c *collector) commit(n Commit) {
	if n.LSN != 0 && (c.newest.LSN == 0 || n.Micros > c.newest.Micros) {
		c.newest = n
	}
}

// RestorePoint is a call of xlog.Visit.
func (c *collector) RestorePoint(at postgres.LSN, name string, micros int64) {
	c.points = append(c.points, Commit{LSN: at, Micros: micros, Name: name})
}
