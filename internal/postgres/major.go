package postgres

import "fmt"

// MinMajor and MaxMajor bound the PostgreSQL majors whose formats and
// functions this package knows.
const (
	MinMajor = 13
	MaxMajor = 18
)

// SupportedMajor tells whether the major is one this package knows.
func SupportedMajor(major int) bool { return major >= MinMajor && major <= MaxMajor }

// MagicMajor returns the major that writes WAL pages with this xlp_magic
// (XLOG_PAGE_MAGIC in src/include/access/xlog_internal.h of each major). A
// magic of no supported major gives known == false.
func MagicMajor(magic uint16) (major int, known bool) {
	switch magic {
	case 0xD106:
		return 13, true
	case 0xD10D:
		return 14, true
	case 0xD110:
		return 15, true
	case 0xD113:
		return 16, true
	case 0xD116:
		return 17, true
	case 0xD118:
		return 18, true
	default:
		return 0, false
	}
}

// CatalogMajor returns the major that was released with this catalog version
// (CATALOG_VERSION_NO in src/include/catalog/catversion.h of each major).
func CatalogMajor(catver uint32) (major int, known bool) {
	switch catver {
	case 202007201:
		return 13, true
	case 202107181:
		return 14, true
	case 202209061:
		return 15, true
	case 202307071:
		return 16, true
	case 202406281:
		return 17, true
	case 202506291:
		return 18, true
	default:
		return 0, false
	}
}

// TablespaceVersionDir is the name of the one directory inside a tablespace
// that belongs to a cluster of this major and catalog version; what lies
// beside it is another cluster's (TABLESPACE_VERSION_DIRECTORY in
// src/include/common/relpath.h).
func TablespaceVersionDir(major int, catver uint32) string {
	return fmt.Sprintf("PG_%d_%d", major, catver)
}
