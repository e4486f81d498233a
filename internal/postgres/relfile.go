package postgres

import (
	"math"
	"strconv"
	"strings"
)

// OIDs of the two tablespaces that every cluster has
// (src/include/catalog/pg_tablespace.dat).
const (
	DefaultTablespace uint32 = 1663 // base/
	GlobalTablespace  uint32 = 1664 // global/
)

// Fork is one of the files that make up a relation (ForkNumber in
// src/include/common/relpath.h).
type Fork uint8

// The forks, with PostgreSQL's numbers.
const (
	MainFork Fork = iota
	FSMFork       // free space map
	VMFork        // visibility map
	InitFork      // what an unlogged relation is reset to
)

// String is the fork's name as PostgreSQL has it.
func (f Fork) String() string {
	switch f {
	case MainFork:
		return "main"
	case FSMFork:
		return "fsm"
	case VMFork:
		return "vm"
	case InitFork:
		return "init"
	default:
		return "unknown"
	}
}

func forkOfSuffix(s string) (Fork, bool) {
	switch s {
	case "fsm":
		return FSMFork, true
	case "vm":
		return VMFork, true
	case "init":
		return InitFork, true
	default:
		return 0, false
	}
}

// RelFile is one file of a relation.
type RelFile struct {
	Tablespace uint32 // OID; 0 when only the file name is known
	Database   uint32 // OID; 0 for shared relations, and when only the file name is known
	Filenode   uint32 // relfilenumber
	Fork       Fork
	SegmentNo  uint32 // 0 for the first file, n for <name>.n
	Temp       bool   // of a temporary relation: never in a backup
}

// FirstBlock is the number of the file's first block within the fork, with
// segBlocks blocks to a file (pg_control's relseg_size).
func (r RelFile) FirstBlock(segBlocks uint32) uint32 { return r.SegmentNo * segBlocks }

// ParseRelFileName reads the name of a relation's file,
// <filenode>[_fsm|_vm|_init][.<n>], or of a temporary relation's,
// t<backend>_<filenode>… (parse_filename_for_nontemp_relation in
// src/backend/storage/file/reinit.c and looks_like_temp_rel_name in
// src/backend/storage/file/fd.c). Any other name gives ok == false.
func ParseRelFileName(name string) (r RelFile, ok bool) {
	stem, segment, dotted := strings.Cut(name, ".")
	stem, r.Temp = strings.CutPrefix(stem, "t")
	if r.Temp {
		var backend string
		if backend, stem, ok = strings.Cut(stem, "_"); !ok || !allDigits(backend) {
			return RelFile{}, false
		}
	}
	stem, suffix, forked := strings.Cut(stem, "_")
	if forked {
		if r.Fork, ok = forkOfSuffix(suffix); !ok {
			return RelFile{}, false
		}
	}
	if r.Filenode, ok = relNumber(stem, r.Temp); !ok {
		return RelFile{}, false
	}
	if dotted {
		if r.SegmentNo, ok = relNumber(segment, r.Temp); !ok {
			return RelFile{}, false
		}
	}
	return r, true
}

// relNumber reads a number of up to 32 bits. In the name of a permanent
// relation it is not zero and has no leading zeros; of a temporary one the
// server takes any digits.
func relNumber(s string, anyDigits bool) (uint32, bool) {
	if !allDigits(s) {
		return 0, false
	}
	if anyDigits {
		// A temporary file is only ever left out, so a number that does not
		// fit must not make it look like something else.
		v, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			v = math.MaxUint32
		}
		return uint32(v), true
	}
	if s[0] == '0' {
		return 0, false
	}
	v, err := strconv.ParseUint(s, 10, 32)
	return uint32(v), err == nil
}

func allDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// FileClass is what the path of a file in a data directory tells about it.
type FileClass struct {
	// Relation: the file is one of a permanent relation's, described by Rel.
	Relation bool
	// TempRelation: the file is one of a temporary relation's, described by Rel.
	TempRelation bool
	// PageChecksums: in a cluster with data checksums every page of it has one.
	PageChecksums bool
	Rel           RelFile
}

// ClassifyPath judges a file by its path relative to the data directory, with
// slashes. Relations lie in global/, base/<database>/ and
// pg_tblspc/<tablespace>/PG_<major>_<catalog version>/<database>/ and nowhere
// else (src/common/relpath.c). Temporary ones only in the latter two.
func ClassifyPath(rel string) FileClass {
	dir, name, ok := cutLast(rel)
	if !ok {
		return FileClass{}
	}
	spc, db, ok := relationDir(dir)
	if !ok {
		return FileClass{}
	}
	r, ok := ParseRelFileName(name)
	if !ok || r.Temp && spc == GlobalTablespace {
		return FileClass{}
	}
	r.Tablespace, r.Database = spc, db
	return FileClass{Relation: !r.Temp, TempRelation: r.Temp, PageChecksums: !r.Temp, Rel: r}
}

func cutLast(rel string) (dir, name string, ok bool) {
	i := strings.LastIndexByte(rel, '/')
	if i < 0 {
		return "", rel, false
	}
	return rel[:i], rel[i+1:], true
}

// relationDir finds tablespace and database of a directory that holds
// relations.
func relationDir(dir string) (spc, db uint32, ok bool) {
	if dir == "global" {
		return GlobalTablespace, 0, true
	}
	first, rest, _ := strings.Cut(dir, "/")
	switch first {
	case "base":
		db, ok = relNumber(rest, false)
		return DefaultTablespace, db, ok
	case "pg_tblspc":
		oid, rest, _ := strings.Cut(rest, "/")
		version, rest, _ := strings.Cut(rest, "/")
		if spc, ok = relNumber(oid, false); !ok || !isVersionDir(version) {
			return 0, 0, false
		}
		db, ok = relNumber(rest, false)
		return spc, db, ok
	default:
		return 0, 0, false
	}
}

// isVersionDir tells whether a name has the form that TablespaceVersionDir
// makes, of any major.
func isVersionDir(name string) bool {
	rest, ok := strings.CutPrefix(name, "PG_")
	if !ok {
		return false
	}
	major, catver, ok := strings.Cut(rest, "_")
	return ok && allDigits(major) && allDigits(catver)
}
