package postgres

import (
	"bytes"
	"fmt"
	"strconv"
)

// Tablespace is a tablespace other than the two that every cluster has.
type Tablespace struct {
	OID uint32
	// Location is the absolute path of its directory. In-place tablespaces
	// (allow_in_place_tablespaces, for tests) have none: it is then empty or
	// relative, and such a tablespace has no line in tablespace_map.
	Location string
}

// ParseTablespaceMap reads a tablespace_map file: lines of an OID, a blank and
// a path, in which a backslash stands before each line feed, carriage return
// and backslash (read_tablespace_map in
// src/backend/access/transam/xlogrecovery.c). Empty data is no tablespaces.
func ParseTablespaceMap(data []byte) ([]Tablespace, error) {
	var out []Tablespace
	seen := map[uint32]bool{}
	line := make([]byte, 0, 256)
	escaped := false
	for i, c := range data {
		switch {
		case escaped:
			line, escaped = append(line, c), false
		case c == '\\':
			escaped = true
		case c == '\r':
			return nil, fmt.Errorf("parse tablespace map: byte %d is a carriage return: the file was changed after the server made it", i)
		case c != '\n':
			line = append(line, c)
		default:
			t, err := parseTablespaceLine(line)
			if err != nil {
				return nil, err
			}
			if seen[t.OID] {
				return nil, fmt.Errorf("parse tablespace map: tablespace %d appears twice", t.OID)
			}
			seen[t.OID] = true
			out = append(out, t)
			line = line[:0]
		}
	}
	if len(line) > 0 || escaped {
		return nil, fmt.Errorf("parse tablespace map: the last line %q has no end: the file is cut short", line)
	}
	return out, nil
}

func parseTablespaceLine(line []byte) (Tablespace, error) {
	number, path, ok := bytes.Cut(line, []byte{' '})
	oid, valid := relNumber(string(number), false)
	if !ok || !valid || len(path) == 0 {
		return Tablespace{}, fmt.Errorf("parse tablespace map: expected the OID of a tablespace, a blank and a path, not %q", line)
	}
	return Tablespace{OID: oid, Location: string(path)}, nil
}

// FormatTablespaceMap is the inverse of ParseTablespaceMap. Tablespaces whose
// location is not absolute are in-place ones and get no line. Nil means that
// no file is needed.
func FormatTablespaceMap(spaces []Tablespace) []byte {
	var b []byte
	for _, t := range spaces {
		if t.Location == "" || t.Location[0] != '/' {
			continue
		}
		b = strconv.AppendUint(b, uint64(t.OID), 10)
		b = append(b, ' ')
		for i := range len(t.Location) {
			if c := t.Location[i]; c == '\n' || c == '\r' || c == '\\' {
				b = append(b, '\\')
			}
			b = append(b, t.Location[i])
		}
		b = append(b, '\n')
	}
	return b
}
