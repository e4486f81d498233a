package postgres

import "context"

// Text runs a query of one text value in the session itself.
func (s *Server) Text(ctx context.Context, sql string) (string, error) {
	var text string
	err := s.row(ctx, sql, nil, &text)
	return text, err
}
