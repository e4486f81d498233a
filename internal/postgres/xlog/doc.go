// Package xlog decodes the records of WAL segments of PostgreSQL 13 to 18: it
// puts records together over pages, proves them by their checksum and by the
// chain of xl_prev, and hands on which blocks they touch. The formats are
// those of src/include/access/xlogrecord.h, xlog_internal.h and the *_xlog.h
// of the resource managers; the rules those of
// src/backend/access/transam/xlogreader.c.
package xlog
