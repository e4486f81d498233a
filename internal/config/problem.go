package config

import (
	"fmt"
	"slices"
	"strings"

	"agent/internal/errs"
)

// problems gathers everything that is wrong, so that one run shows it all.
type problems struct{ list []*errs.Error }

func (p *problems) add(e *errs.Error) { p.list = append(p.list, e) }

// err returns nil, the one problem, or one error that names all of them.
func (p *problems) err() error {
	switch len(p.list) {
	case 0:
		return nil
	case 1:
		return p.list[0]
	}
	var what, hints []string
	for _, e := range p.list {
		what = append(what, e.Error())
		if e.Hint != "" && !slices.Contains(hints, e.Hint) {
			hints = append(hints, e.Hint)
		}
	}
	return errs.New(errs.Config, strings.Join(hints, " "),
		"%d settings are wrong: %s", len(what), strings.Join(what, "; "))
}

// badValue is the error for a value that its option refuses. A reason that
// carries a hint knows better what to do than the table.
func badValue(o option, v value, reason error) *errs.Error {
	hint := errs.HintOf(reason)
	if hint == "" {
		hint = "The setting " + o.Key + ": " + o.Help
	}
	return errs.New(errs.Config, hint, "%s: bad value %q (%s): %s; allowed: %s",
		o.Key, o.shown(v), v.origin, reason, o.Allowed)
}

// shown is a value for an error text.
func (o option) shown(v value) string {
	text := v.text()
	switch {
	case o.Secret || holdsPrivateKey(text):
		return hide(text)
	case o.mask != nil:
		return shorten(o.mask(text))
	default:
		return shorten(maskAny(text))
	}
}

// unknown is the error for a name that is not a setting; what says what kind
// of name it is (and where it stands), known lists the names of that kind.
func unknown(what, name, text string, from origin, meant string, known []string) *errs.Error {
	hint := fmt.Sprintf("Allowed are: %s.", strings.Join(known, ", "))
	if meant != "" {
		hint = fmt.Sprintf("Did you mean %s? %s", meant, hint)
	}
	where := ""
	if from.kind == fromFile {
		where = " (" + from.String() + ")"
	}
	return errs.New(errs.Config, hint, "unknown %s %s with value %q%s",
		what, shorten(maskAny(name)), safe(name, text), where)
}

// normal makes the spellings of a name comparable: AGENT_LOG_LEVEL,
// --log-level and log_level are the same.
func normal(name string) string {
	name = strings.ToLower(strings.ReplaceAll(strings.TrimLeft(name, "-"), "-", "_"))
	return strings.TrimPrefix(name, "agent_")
}

// meant finds the option that an unknown name stands for: the name it has in
// another layer or in WAL-G, or the nearest one. "" if there is none.
func meant(rows []option, name string, as func(option) string) string {
	n := normal(name)
	for _, a := range aliases() {
		if n == normal(a.env) {
			o, _ := find(rows, func(o option) bool { return o.Key == a.key })
			return as(o)
		}
	}
	names := make([]string, 0, 3*len(rows))
	owner := map[string]option{}
	for _, o := range rows {
		if as(o) == "" {
			continue
		}
		for _, alias := range []string{o.Key, normal(o.Flag), normal(o.Env)} {
			if alias != "" {
				names = append(names, alias)
				owner[alias] = o
			}
		}
	}
	if o, ok := owner[closest(n, names)]; ok {
		return as(o)
	}
	// "region" is s3_region, but "endpoint" could be one of several.
	ends := func(o option) bool { return as(o) != "" && n != "" && strings.HasSuffix(o.Key, "_"+n) }
	if i := slices.IndexFunc(rows, ends); i >= 0 && !slices.ContainsFunc(rows[i+1:], ends) {
		return as(rows[i])
	}
	return ""
}

// names lists what as gives for each row, without those that have none.
func names(rows []option, as func(option) string) []string {
	list := make([]string, 0, len(rows))
	for _, o := range rows {
		if name := as(o); name != "" {
			list = append(list, name)
		}
	}
	return list
}

// secretHint says where a secret belongs, instead of a flag or a file.
func secretHint(o option) string {
	hint := "Set " + o.Env + " in the environment"
	if o.Key == "identity" {
		hint += ", or use identity_file (--identity-file) or identity_command (--identity-command)"
	}
	return hint + "."
}
