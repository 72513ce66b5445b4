mod choosing;
mod frontends;
mod indexing;
mod publishing;
