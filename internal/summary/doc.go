// Package summary says which blocks the WAL of one segment touches, in a few
// kilobytes, and joins what several segments say, so that an incremental
// backup reads only the pages that have changed.
//
// A summary is a pure function of the segment's bytes and of Version: every
// host makes the same one. docs/format.md has its bytes.
package summary
