package azure

import (
	"encoding/hex"
	"fmt"
	"strings"

	"agent/internal/storage"
)

// Names of metadata must be C# identifiers, and their case is lost on the way
// ("Naming and Referencing Containers, Blobs, and Metadata"). So each byte that
// is not an ASCII letter or digit is written as _xHH_, an underscore too, and a
// digit at the start; letters become lower-case.

func metaName(name string) string {
	var s strings.Builder
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if letter || '0' <= c && c <= '9' && i > 0 {
			s.WriteByte(c)
		} else {
			fmt.Fprintf(&s, "_x%02x_", c)
		}
	}
	return strings.ToLower(s.String())
}

// unmetaName is the opposite of metaName, for names in lower case. What is not
// an escape stays: others may have written it.
func unmetaName(name string) string {
	var s strings.Builder
	for name != "" {
		if len(name) >= 5 && name[:2] == "_x" && name[4] == '_' {
			if c, err := hex.DecodeString(name[2:4]); err == nil {
				s.Write(c)
				name = name[5:]
				continue
			}
		}
		s.WriteByte(name[0])
		name = name[1:]
	}
	return s.String()
}

// metaOut makes the metadata of a request. Values travel as headers, which
// lose spaces at their ends, and the service takes ASCII alone.
func metaOut(meta map[string]string) (map[string]*string, error) {
	if len(meta) == 0 {
		return nil, nil
	}
	out := make(map[string]*string, len(meta))
	for name, value := range meta {
		if name == "" || strings.TrimSpace(value) != value || value == "" ||
			strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
			return nil, fmt.Errorf("%w: metadata %q is empty, has spaces at an end or more than printable ASCII", storage.ErrUnsupported, name)
		}
		out[metaName(name)] = &value
	}
	return out, nil
}

func metaIn(meta map[string]*string) map[string]string {
	if len(meta) == 0 {
		return nil
	}
	in := make(map[string]string, len(meta))
	for name, value := range meta {
		if value != nil {
			in[unmetaName(strings.ToLower(name))] = *value
		}
	}
	return in
}
