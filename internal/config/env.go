package config

import (
	"slices"
	"strings"

	"agent/internal/errs"
)

// prefix of our variables: none of these may be unknown.
const envPrefix = "AGENT_"

// lookupIn looks variables up in a list like os.Environ.
func lookupIn(environ []string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for _, entry := range environ {
			if k, v, ok := strings.Cut(entry, "="); ok && k == name {
				return v, true
			}
		}
		return "", false
	}
}

// variable returns the value of a variable without blanks around it; an empty
// one counts as not set.
func (l *loader) variable(name string) (string, bool) {
	text, set := l.in.Env(name)
	text = strings.TrimSpace(text)
	return text, set && text != ""
}

// variables returns the sorted names of those that are set and not empty and
// for which match is true.
func (l *loader) variables(match func(string) bool) []string {
	var found []string
	for _, entry := range l.in.Environ {
		name, text, ok := strings.Cut(entry, "=")
		if ok && match(name) && strings.TrimSpace(text) != "" {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// readEnv takes the variables of the table and refuses other AGENT_ ones.
func (l *loader) readEnv() layer {
	settings := layer{}
	for _, o := range l.table {
		if text, ok := l.variable(o.Env); ok {
			settings[o.Key] = value{items: []string{text}, origin: origin{kind: fromEnv, name: o.Env}}
		}
	}
	asEnv := func(o option) string { return o.Env }
	known := append(names(l.table, asEnv), EnvConfig)
	for _, name := range l.variables(func(name string) bool { return strings.HasPrefix(name, envPrefix) }) {
		if slices.Contains(known, name) {
			continue
		}
		text, _ := l.in.Env(name)
		guess := meant(l.table, name, asEnv)
		if guess == "" {
			guess = closest(name, known)
		}
		l.problems.add(unknown("variable", name, text, origin{kind: fromEnv, name: name}, guess, known))
	}
	return settings
}

// readFlags takes the flags that were given.
func (l *loader) readFlags() layer {
	settings := layer{}
	asFlag := func(o option) string {
		if o.Flag == "" {
			return ""
		}
		return "--" + o.Flag
	}
	given := make([]string, 0, len(l.in.Flags))
	for name := range l.in.Flags {
		given = append(given, name)
	}
	slices.Sort(given)
	for _, name := range given {
		from := origin{kind: fromFlag, name: name}
		o, known := find(l.table, func(o option) bool { return o.Flag == name && name != "" })
		if !known {
			if o, ok := find(l.table, func(o option) bool { return o.EnvOnly && o.Key == normal(name) }); ok {
				l.problems.add(errs.New(errs.Config,
					secretHint(o),
					"%s may not be a flag, since every user of the host can read the arguments of a process", o.Key))
				continue
			}
			l.problems.add(unknown("flag", "--"+name, l.in.Flags[name], from, meant(l.table, name, asFlag), names(l.table, asFlag)))
			continue
		}
		settings[o.Key] = value{items: []string{strings.TrimSpace(l.in.Flags[name])}, origin: from}
	}
	return settings
}
