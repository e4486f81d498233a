package config

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"agent/internal/errs"
)

// FuzzLoadFile feeds files. Whatever is in them, the result is a
// configuration that can be shown, or a classified error that names the file.
func FuzzLoadFile(f *testing.F) {
	for _, s := range []string{
		"", "---\n", "label: a\n", "label: &x a\nrecipients: [*x]\n", "a: &a [*a]\n", "recipients: &a [*a]\n", "? {a: b}\n: c\n",
		twoRepositories, "repositories: &a [*a]\n", "repositories: [&a {immutable: *a, url: /x}]\n", "repositories:\n", "immutable: {mode: governance, for: 1d}\n",
		"repositories: [{url: /a, ? [b] : c}, {name: a, <<: *x}]\n", "repositories: [{url: /a, name: !!binary aGk=}]\n", "repository: /a\nrepositories: [{url: s3://b}]\n",
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
		rows := slices.DeleteFunc(table(), func(o option) bool { return o.Key == keyRepositories })
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

// FuzzRepositories feeds the list in the environment: what is accepted has
// unique names, URLs, a required one and can be picked by name.
func FuzzRepositories(f *testing.F) {
	for _, s := range []string{
		`[{name: a, url: /a}, {url: s3://b, required: false, immutable: {mode: governance, for: 1d}}]`, `[{"url":"gs://b","insecure":true}]`, "[]", "null", "&a [*a]",
		"- url: /a\n- url: sftp://u@h/x\n  sftp_identity_file: /k\n", "[{url: /a}, {url: /b, required: false, name: repo1}]", "[{url: ~/x, name: \"\\0\"}]", "[[[[", "{url: /a}", "!!x [a]",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		environ := []string{"AGENT_REPOSITORIES=" + text}
		c, err := Load(input("", environ, nil))
		if err != nil {
			var e *errs.Error
			if !errors.As(err, &e) || e.Kind != errs.Config || !strings.Contains(err.Error(), "env AGENT_REPOSITORIES") {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		required := false
		for i, r := range c.Repositories {
			required = required || r.Required
			one, err := Load(input("", environ, map[string]string{"repository": r.Name}))
			if err != nil {
				t.Fatalf("%q: pick %s: %v", text, r.Name, err)
			}
			if got := one.Repositories; len(got) != 1 || got[0].Name != r.Name || got[0].URL != r.URL || !got[0].Required {
				t.Fatalf("%q: item %d was picked as %v", text, i, got)
			}
		}
		if len(c.Repositories) > 0 && !required {
			t.Fatalf("%q: none is required", text)
		}
		if _, err := json.Marshal(c); err != nil {
			t.Fatal(err)
		}
	})
}
