package config

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// value is a setting as it was written, before parsing.
type value struct {
	items  []string // one item, unless it is a YAML list
	list   bool
	origin origin
	node   *yaml.Node // what it was in the file, if that was no list of values
	only   string     // if not "", it counts for repositories of this scheme alone
}

func (v value) text() string {
	if v.list {
		return "[" + strings.Join(v.items, ", ") + "]"
	}
	return strings.Join(v.items, ", ")
}

// originKind is the layer that a value is from.
type originKind uint8

const (
	fromDefault originKind = iota
	fromFile
	fromEnv
	fromFlag
)

// origin says where a value was set.
type origin struct {
	kind originKind
	name string // path, variable or flag
	line int    // of the file, from 1
}

// String is the source as Effective and the errors show it.
func (o origin) String() string {
	switch o.kind {
	case fromFile:
		return fmt.Sprintf("file %s line %d", o.name, o.line)
	case fromEnv:
		return "env " + o.name
	case fromFlag:
		return "flag --" + o.name
	default:
		return "default"
	}
}
