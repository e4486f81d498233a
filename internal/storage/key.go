package storage

import (
	"fmt"
	"strings"
)

// Limits of a key. S3, GCS and Azure take 1,024 bytes, so that half of it is
// left for the prefix a bucket may be opened with; file systems take 255
// bytes for a component, so that a server may still add a suffix.
const (
	MaxKey       = 512 // bytes of a whole key
	MaxComponent = 200 // bytes between two slashes
)

// TempPrefix begins the names of unfinished files in backends that need
// them. No component of a key begins with it.
const TempPrefix = ".tmp-"

// Names that file systems and their servers make by themselves in a folder of
// ours: NFS clients rename a deleted file that is still open to ".nfs…"
// (Linux, fs/nfs/unlink.c), and ext file systems keep "lost+found" in their
// root (e2fsprogs).
const (
	nfsPrefix = ".nfs"
	lostFound = "lost+found"
)

// CheckKey returns an error that matches ErrKey unless key is one that every
// store can hold: relative, components separated by single slashes, of ASCII
// letters, digits and "._+=@,-", at most MaxKey bytes long with components of
// at most MaxComponent. No component ends with a dot, which takes in "." and
// ".." (Azure, "Naming and Referencing Containers, Blobs, and Metadata": no
// path segment should end with a dot), and none is a name reserved for
// unfinished files or made by file systems.
//
// A key should not be the directory of another one ("a" beside "a/b"): object
// stores take that, folders do not.
func CheckKey(key string) error {
	if key == "" {
		return fmt.Errorf("%w: it is empty", ErrKey)
	}
	if err := checkText(key); err != nil {
		return err
	}
	for part := range strings.SplitSeq(key, "/") {
		if err := checkComponent(part); err != nil {
			return fmt.Errorf("%w %q: %s", ErrKey, key, err.Error())
		}
	}
	return nil
}

// CheckPrefix returns an error that matches ErrKey unless prefix can be the
// beginning of a key. It may be empty, end with a slash, and end in the middle
// of a component.
func CheckPrefix(prefix string) error {
	if err := checkText(prefix); err != nil {
		return err
	}
	parts := strings.Split(prefix, "/")
	last := parts[len(parts)-1]
	for _, part := range parts[:len(parts)-1] {
		if err := checkComponent(part); err != nil {
			return fmt.Errorf("%w prefix %q: %s", ErrKey, prefix, err.Error())
		}
	}
	if len(last) > MaxComponent || reserved(last) {
		return fmt.Errorf("%w prefix %q: no key begins so", ErrKey, prefix)
	}
	return nil
}

// ValidComponent reports whether name may stand between two slashes of a key.
// Backends over folders use it to pass over files that are not ours.
func ValidComponent(name string) bool {
	return checkBytes(name) < 0 && !strings.Contains(name, "/") && checkComponent(name) == nil
}

// keyError is the reason why a component is refused.
type keyError string

func (e keyError) Error() string { return string(e) }

func checkText(s string) error {
	if len(s) > MaxKey {
		return fmt.Errorf("%w: %d bytes, more than %d", ErrKey, len(s), MaxKey)
	}
	if i := checkBytes(s); i >= 0 {
		return fmt.Errorf("%w %q: byte %d is not a letter, digit or one of ._+=@,-", ErrKey, s, i)
	}
	return nil
}

// checkBytes returns the place of the first byte that no key has, or -1.
func checkBytes(s string) int {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '/', c == '.', c == '_', c == '+', c == '=', c == '@', c == ',', c == '-':
		default:
			return i
		}
	}
	return -1
}

func checkComponent(part string) error {
	switch {
	case part == "":
		return keyError("an empty component")
	case len(part) > MaxComponent:
		return keyError(fmt.Sprintf("a component of %d bytes, more than %d", len(part), MaxComponent))
	case part[len(part)-1] == '.':
		return keyError("a component that ends with a dot")
	case reserved(part), part == lostFound:
		return keyError("a reserved name")
	}
	return nil
}

func reserved(part string) bool {
	return strings.HasPrefix(part, TempPrefix) || strings.HasPrefix(part, nfsPrefix)
}
