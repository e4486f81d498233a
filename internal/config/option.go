package config

import (
	"errors"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"agent/internal/storage"
)

// Option describes one setting for those who register flags, complete shell
// words or write documentation.
type Option struct {
	Key     string   // in YAML
	Env     string   // environment variable
	Flag    string   // without dashes; "" if it cannot be a flag
	Type    string   // one word for the value in usage texts: URL, PATH, SIZE, ...
	Default string   // as text; "" if there is none
	Allowed string   // what a value may be, as a phrase
	Values  []string // all allowed values, where they are few; for shell completion
	Help    string   // what it does, one sentence
	Secret  bool     // the whole value is never shown
	EnvOnly bool     // refused in the file and as a flag
	Aliases []string // variables of WAL-G with the same meaning
	// Schemes are those of the repositories' URLs for which the setting has a
	// meaning, if it is one of a repository: it may then also stand in an item
	// of repositories, where it wins. nil for all other settings.
	Schemes []string
}

// option is a row of the table: what others see of it, and how it is read.
type option struct {
	Option
	list      bool // a YAML list is allowed
	multiline bool // line breaks are allowed
	// mapping writes a YAML mapping as text; nil if none is allowed.
	mapping func(*yaml.Node) (string, error)
	// mask shows a bad value without what may be a secret in it; nil: maskAny.
	mask func(string) string
	// fallback gives the default as it would be written; nil if there is none.
	fallback func(Input) string
	// parse stores the value; nil for the rows that choose the repositories,
	// which are read together (choose.go).
	parse parser[Config]
	// show writes the value as it would be set, without secrets.
	show func(c Config) string
}

// Options lists all settings in the order in which they are documented.
func Options() []Option {
	rows := table()
	options := make([]Option, len(rows))
	for i, o := range rows {
		options[i] = o.Option
		for _, a := range aliases() {
			if a.key == o.Key {
				options[i].Aliases = append(options[i].Aliases, a.env)
			}
		}
	}
	return options
}

var (
	errEmpty    = errors.New("it is empty")
	errControl  = errors.New("it holds a control character")
	errIsSecret = errors.New("it is a private key, which belongs in AGENT_IDENTITY or in a file that identity_file names; recipients are the public keys (age1...)")
	errIsSSHKey = errors.New("it is a private key: keep that in a file for the agent's user alone, and give its path")
)

// check refuses what no option may hold, before its own parser looks at it.
func (o option) check(v value) error {
	if len(v.items) == 0 {
		return errEmpty
	}
	for _, item := range v.items {
		if item == "" {
			return errEmpty
		}
		switch {
		case o.Secret || !holdsPrivateKey(item):
		case slices.Equal(o.Schemes, []string{storage.SchemeSFTP}):
			return errIsSSHKey
		default:
			return errIsSecret
		}
		bad := func(r rune) bool { return r < ' ' || r == 0x7f }
		if o.multiline {
			bad = func(r rune) bool { return (r < ' ' && !strings.ContainsRune("\n\r\t", r)) || r == 0x7f }
		}
		if strings.ContainsFunc(item, bad) {
			return errControl
		}
	}
	return nil
}

// find returns the row for which match is true.
func find(rows []option, match func(option) bool) (option, bool) {
	for _, o := range rows {
		if match(o) {
			return o, true
		}
	}
	return option{}, false
}
