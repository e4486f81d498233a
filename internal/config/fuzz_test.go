package config

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"walagent/internal/errs"
)

// FuzzLoadFile feeds files. Whatever is in them, the result is a
// configuration that can be shown, or a classified error that names the file.
func FuzzLoadFile(f *testing.F) {
	for _, s := range []string{
		"", "---\n", "label: a\n", "label: &x a\nrecipients: [*x]\n", "a: &a [*a]\n", "recipients: &a [*a]\n", "? {a: b}\n: c\n",
		"label: a\nlabel: b\n", "<<: *x\n", "- a\n", "label: !!binary aGk=\n", "%YAML 1.1\n---\nlabel: a\n", "\x00", "\xff\xfe",
		"bandwidth: 50MB\nwal_timeout: 1d\nconnection: postgres://u:p@h\n", "connection: \"password='\\\\\"\n", "&a : *a\n", "label: |\n x\n y\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, file string) {
		if file == "" {
			return
		}
		c, err := Load(input(file, nil, nil))
		if err != nil {
			var e *errs.Error
			if !errors.As(err, &e) || e.Kind != errs.Config || !strings.Contains(err.Error(), testFile) {
				t.Fatalf("%q: %v", file, err)
			}
			return
		}
		if _, err := json.Marshal(c); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzEnvironment feeds the value of every variable in turn: nothing panics,
// and what is accepted is accepted again as it is shown.
func FuzzEnvironment(f *testing.F) {
	for i, s := range []string{"file:///x", "/pg", "host=a password='b c'", "~/x", "zstd:3", "age1a,age1b", "AGE-SECRET-KEY-1", "5", "20MiB", "1d", "postgres://a:b@c?d=e"} {
		f.Add(uint8(i), s)
	}
	f.Fuzz(func(t *testing.T, which uint8, text string) {
		rows := table()
		o := rows[int(which)%len(rows)]
		in := Input{Env: func(name string) (string, bool) { return text, name == o.Env }, Home: "/home/me"}
		c, err := Load(in)
		if err != nil {
			if errs.KindOf(err) != errs.Config || !strings.HasPrefix(err.Error(), o.Key+": ") {
				t.Fatalf("%s=%q: %v", o.Env, text, err)
			}
			return
		}
		shown := o.show(*c)
		if o.Secret || strings.Contains(shown, Mask) || shown == "" {
			return
		}
		text = shown
		again, err := Load(in)
		if err != nil || o.show(*again) != shown {
			t.Fatalf("%s: %q was accepted, but not again: %v, %v", o.Env, shown, again, err)
		}
	})
}
