package crypto

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"agent/internal/errs"
)

func TestParseRecipients(t *testing.T) {
	_, a := generate(t, false)
	_, b := generate(t, false)
	_, pq := generate(t, true)
	_, ed := sshKey(t, "ed25519", "")
	_, rsa := sshKey(t, "rsa", "")
	bare := func(s string) string { return strings.Join(strings.Fields(s)[:2], " ") }
	file := write(t, "# ours\n\n  "+a+"\r\n"+ed+"\n")
	for name, c := range map[string]struct{ values, want []string }{
		"none":         {nil, nil},
		"blank":        {[]string{"", "  "}, nil},
		"two":          {[]string{a, " " + b + " "}, []string{a, b}},
		"repeated":     {[]string{a, b, a}, []string{a, b}},
		"upper case":   {[]string{strings.ToLower(a)}, []string{a}},
		"ssh":          {[]string{ed, rsa}, []string{bare(ed), bare(rsa)}},
		"file":         {[]string{file, b}, []string{a, bare(ed), b}},
		"lines":        {[]string{a + "\n# and\n" + b + "\n"}, []string{a, b}},
		"post-quantum": {[]string{pq}, []string{pq}},
	} {
		r, err := ParseRecipients(c.values)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(append([]string{}, c.want...), r.Strings()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if r.Empty() != (len(c.want) == 0) || r.PostQuantum() != (name == "post-quantum") {
			t.Errorf("%s: empty %v, post-quantum %v", name, r.Empty(), r.PostQuantum())
		}
	}
}

func TestParseRecipientsRefuses(t *testing.T) {
	id, a := generate(t, false)
	pqID, pq := generate(t, true)
	private, ed := sshKey(t, "ed25519", "")
	secrets := []string{id, strings.ToLower(id), pqID, private, strings.Split(private, "\n")[1]}
	for name, c := range map[string]struct {
		values []string
		want   string
	}{
		"mix":                {[]string{a, pq}, "refuses to mix"},
		"mix, ssh":           {[]string{pq, ed}, "refuses to mix"},
		"cut":                {[]string{a[:40]}, "malformed"},
		"changed":            {[]string{a[:20] + "qq" + a[22:]}, "malformed"},
		"post-quantum cut":   {[]string{pq[:300]}, "malformed"},
		"ssh cut":            {[]string{ed[:40]}, "malformed"},
		"age1":               {[]string{"age1"}, "malformed"},
		"plugin":             {[]string{"age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t"}, `plugin "yubikey"`},
		"ecdsa":              {[]string{"ecdsa-sha2-nistp256 AAAAE2VjZHNh"}, `SSH key of type "ecdsa-sha2-nistp256"`},
		"ssh-dss":            {[]string{"ssh-dss AAAAB3NzaC1kc3M"}, `SSH key of type "ssh-dss"`},
		"identity":           {[]string{id}, "secret key"},
		"identity, lower":    {[]string{strings.ToLower(id)}, "secret key"},
		"identity, pq":       {[]string{pqID}, "secret key"},
		"private key":        {[]string{private}, "secret key"},
		"identity file":      {[]string{write(t, "# public key: "+a+"\n"+id)}, "line 2"},
		"private key file":   {[]string{write(t, private)}, "line 1"},
		"inside private key": {[]string{write(t, strings.Split(private, "\n")[1])}, "not a recipient"},
		"no file":            {[]string{"/nonexistent/recipients"}, "/nonexistent/recipients"},
		"folder":             {[]string{t.TempDir()}, "is a directory"},
		"empty file":         {[]string{write(t, "\n# nothing\n")}, "no recipient in it"},
		"malformed in file":  {[]string{write(t, a+"\nage1abc\n")}, "line 2"},
		"plugin identity":    {[]string{"AGE-PLUGIN-YUBIKEY-1QQQ"}, "secret key"},
		"huge file":          {[]string{write(t, strings.Repeat("#\n", maxKeyFile))}, "more than"},
	} {
		_, err := ParseRecipients(c.values)
		t.Run(name, func(t *testing.T) { wantError(t, err, errs.Config, c.want) })
		withoutSecrets(t, err, secrets...)
		if err != nil && len(err.Error()) > 400 {
			t.Errorf("%s: long message: %v", name, err)
		}
	}
}

// withoutSecrets checks that no part of a secret is in a message.
func withoutSecrets(t *testing.T, err error, secrets ...string) {
	t.Helper()
	if err == nil {
		return
	}
	text := strings.ToUpper(err.Error() + errs.HintOf(err))
	for _, secret := range secrets {
		for _, line := range strings.Split(strings.ToUpper(secret), "\n") {
			line = strings.TrimPrefix(strings.TrimPrefix(line, "AGE-SECRET-KEY-"), "PQ-")
			if strings.HasPrefix(line, "-----") {
				continue
			}
			for at := 1; at+8 <= len(line); at++ {
				if strings.Contains(text, line[at:at+8]) {
					t.Fatalf("%q of a secret is in %q", line[at:at+8], err)
				}
			}
		}
	}
}

func TestFingerprint(t *testing.T) {
	_, a := generate(t, false)
	_, b := generate(t, false)
	one, two := recipients(t, a, b), recipients(t, b, a, b)
	if one.Fingerprint() != two.Fingerprint() || len(one.Fingerprint()) != 16 {
		t.Errorf("%q and %q", one.Fingerprint(), two.Fingerprint())
	}
	if one.Fingerprint() == recipients(t, a).Fingerprint() {
		t.Error("other recipients, same fingerprint")
	}
	if got := (Recipients{}).Fingerprint(); got != "" {
		t.Errorf("empty recipients have %q", got)
	}
}

func FuzzParseRecipients(f *testing.F) {
	_, a := generate(f, false)
	_, pq := generate(f, true)
	f.Add(a)
	f.Add(pq)
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0 c")
	f.Add("age1tag1qqqq")
	f.Fuzz(func(t *testing.T, text string) {
		one, err := parseRecipient(strings.TrimSpace(text))
		if err != nil {
			return
		}
		again, err := parseRecipient(one.text)
		if err != nil || again.text != one.text || again.postQuantum != one.postQuantum {
			t.Fatalf("%q became %q, %v", one.text, again.text, err)
		}
	})
}

func TestWriteFileForRecipientsIsReadOnce(t *testing.T) {
	_, a := generate(t, false)
	path := write(t, a)
	r := recipients(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if seal(t, r, nil, nil) == nil {
		t.Fatal("not sealed")
	}
}
