package config

// distance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b (optimal string alignment).
func distance(a, b string) int {
	before, last := []int(nil), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := last[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(replace, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

// closest returns the candidate nearest to s, or "" if none is near enough to
// be what was meant: two slips, fewer in short words.
func closest(s string, candidates []string) string {
	best, found := 1+min(2, len(s)/3), ""
	if len(s) > 64 {
		return ""
	}
	for _, c := range candidates {
		if d := distance(s, c); d < best {
			best, found = d, c
		}
	}
	return found
}
